"""The feedback stage: the policy answers prompts, annotators rank the answers in Argilla, rankings become pairs.

    responses.jsonl     what the policy answered, before anyone ranked it
    comparisons.jsonl   the same with every annotator's ranking, exactly as given
    preferences.jsonl   the pairs that most annotators order one way

Each part is kept as soon as it is whole, so a kill, or weeks of waiting for annotators, lose nothing.

    accord feedback push configs/demo.yaml      sample and push, then leave
    accord feedback pull configs/demo.yaml      pull; finished if nobody needs to answer any more
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from accord.bundled import data_path
from accord.chat import decode_response, encode_prompt
from accord.errors import UsageError, WaitingForAnnotatorsError
from accord.models import Model, load_tokenizer
from accord.records import Comparison, Prompt, Response, content_id, read_jsonl, write_atomically, write_jsonl
from accord.runs import DataFile, Run, Runs
from accord.sampling.shared import SharedSampler
from feedback.client import Client, connect
from feedback.collect import pull, push, status
from feedback.config import FeedbackConfig
from feedback.preferences import pairwise_preferences
from feedback.server import process
from feedback.simulate import answer_as_simulated, utility

SECONDS_BETWEEN_LOOKS = 3.0


def gather_preferences(
    config: FeedbackConfig, runs: Runs, policy: Model, sampler: SharedSampler, wait: bool = False
) -> Run:
    """Sample answers of `policy`, have them ranked, and turn the rankings into preferences.

    Args:
        config: see `FeedbackConfig`.
        runs: where the run is kept; the embedded Argilla keeps its data in `argilla/` beside the runs.
        policy: the model that answers.
        sampler: samples the answers.
        wait: look again until people have answered, instead of leaving.

    Raises:
        WaitingForAnnotatorsError: people have not answered everything yet; the page stays up for them.
        DataError: the prompts are bad.
    """
    prompts_file = DataFile(data_path(config.prompts))
    with runs.begin("feedback", config, {"policy": policy, "prompts": prompts_file}) as run:
        if run.is_done:
            return run
        prompts = read_jsonl(prompts_file.path, Prompt)[: config.max_prompts]
        comparisons = _sampled(config, run, policy, sampler, prompts)
        click.echo(
            f"feedback: {len(comparisons)} records to rank, {config.responses_per_prompt} answers each"
        )
        with open_argilla(config, runs.root, keep=config.annotators == "human") as client:
            push(client, run.id, comparisons, config.annotators_per_record)
            if config.annotators == "simulated":
                answer_as_simulated(
                    client, run.id, annotators_per_record=config.annotators_per_record, seed=config.seed
                )
            else:
                _wait_for_people(config, client, run, runs.root, wait)
            ranked = pull(client, run.id, comparisons)
        preferences, pairs = pairwise_preferences(ranked)
        write_jsonl(run.path / "comparisons.jsonl", ranked)
        write_jsonl(run.path / "preferences.jsonl", preferences)
        run.finish(
            _figures(config, ranked, len(preferences), pairs),
            {f"pairs_{reason}": count for reason, count in pairs.items() if reason != "kept"},
        )
    process.stop(argilla_home(runs.root))
    return run


def argilla_home(runs_root: Path) -> Path:
    """Where the embedded Argilla keeps its database and secrets."""
    return runs_root / "argilla"


@contextmanager
def open_argilla(config: FeedbackConfig, runs_root: Path, keep: bool) -> Iterator[Client]:
    """The Argilla of this configuration: the given URL, or the embedded server, started where it does not run.

    A server started here ends with the `with`, unless `keep` says that people still need it.

    Raises:
        UsageError: a URL without ARGILLA_API_KEY.
        AccordError: the server cannot be started or reached.
    """
    if config.argilla_url:
        key = os.environ.get("ARGILLA_API_KEY")
        if not key:
            raise UsageError(f"set ARGILLA_API_KEY to an owner's key of {config.argilla_url}")
        yield connect(config.argilla_url, key)
        return
    home = argilla_home(runs_root)
    was_running = process.running(home) is not None
    server = process.start(home, config.port)
    try:
        yield connect(server.url, server.api_key)
    finally:
        if not was_running and not keep:
            process.stop(home)


def set_up_people(config: FeedbackConfig, client: Client, runs_root: Path) -> dict[str, str]:
    """Accounts for the human annotators; names and passwords, which are kept in a file only the user can read."""
    path = argilla_home(runs_root) / "annotators.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    existing = {user["username"] for user in client.users()}
    for name in config.human_annotators:
        if name not in known or name not in existing:
            known[name] = client.set_up_annotator(name, known.get(name))
            write_atomically(path, json.dumps(known, indent=2) + "\n", mode=0o600)
    return {name: known[name] for name in config.human_annotators}


def _sampled(
    config: FeedbackConfig, run: Run, policy: Model, sampler: SharedSampler, prompts: list[Prompt]
) -> list[Comparison]:
    path = run.path / "responses.jsonl"
    if path.exists():
        return read_jsonl(path, Comparison)
    tokenizer = load_tokenizer(policy)
    ids = [prompt.id or content_id([m.model_dump() for m in prompt.prompt]) for prompt in prompts]
    if len(set(ids)) < len(ids):
        raise UsageError(
            f"{config.prompts}: the id '{next(i for i in ids if ids.count(i) > 1)}' stands twice"
        )
    wanted = [
        (i, _seed(config.seed, ids[i], k))
        for i in range(len(ids))
        for k in range(config.responses_per_prompt)
    ]
    encoded = [encode_prompt(tokenizer, prompt.prompt) for prompt in prompts]
    click.echo(
        f"feedback: the policy answers {len(prompts)} prompts, {config.responses_per_prompt} times each"
    )
    completions = sampler.use(policy).sample(
        [encoded[i] for i, _ in wanted],
        [seed for _, seed in wanted],
        config.max_response_tokens,
        config.temperature,
    )
    answers: list[list[Response]] = [[] for _ in prompts]
    for (i, seed), completion in zip(wanted, completions, strict=True):
        text = decode_response(tokenizer, completion.token_ids)
        run_id, truncated = policy.run_id or policy.reference, completion.finish == "length"
        answers[i].append(Response(text=text, run=run_id, seed=seed, truncated=truncated))
    comparisons = [
        Comparison(id=id_, prompt=prompt.prompt, responses=responses)
        for id_, prompt, responses in zip(ids, prompts, answers, strict=True)
    ]
    write_jsonl(path, comparisons)
    return comparisons


def _seed(seed: int, prompt_id: str, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}:{sample}".encode()).digest()[:4])


def _wait_for_people(config: FeedbackConfig, client: Client, run: Run, runs_root: Path, wait: bool) -> None:
    logins = set_up_people(config, client, runs_root)
    waiting = status(client, run.id).records_waiting
    if not waiting:
        return
    click.echo(f"feedback: rank the answers in your browser at {client.url}")
    for name, password in logins.items():
        click.echo(f"feedback:   user {name}   password {password}")
    try:
        while wait and waiting:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = status(client, run.id)
            if now.records_waiting != waiting:
                waiting = now.records_waiting
                click.echo(f"feedback: {now.records - waiting} of {now.records} records are ranked")
    except KeyboardInterrupt:
        click.echo("")
    if waiting:
        raise WaitingForAnnotatorsError(
            f"{waiting} records wait for annotators at {client.url}; run the same command again when they are "
            "ranked (the page stays up until then; `accord feedback stop` ends it)"
        )


def _figures(
    config: FeedbackConfig, comparisons: list[Comparison], preferences: int, pairs: dict[str, int]
) -> dict[str, Any]:
    rankings = [ranking for comparison in comparisons for ranking in comparison.rankings]
    submitted = [r for r in rankings if r.status == "submitted" and r.ranks is not None]
    utilities = [utility(c.prompt, r.text) for c in comparisons for r in c.responses]
    return {
        "annotators_kind": config.annotators,
        "annotators": sorted({ranking.annotator for ranking in rankings}),
        "comparisons": len(comparisons),
        "rankings_submitted": len(submitted),
        "rankings_discarded": sum(r.status == "discarded" for r in rankings),
        "rankings_with_ties": sum(len(set(r.ranks or [])) < len(r.ranks or []) for r in submitted),
        "pairs": sum(pairs.values()),
        "preferences": preferences,
        "pairwise_agreement": pairwise_agreement(comparisons),
        "mean_utility": sum(utilities) / len(utilities),
    }


def pairwise_agreement(comparisons: list[Comparison]) -> float | None:
    """How often two annotators who both order a pair of answers order it the same way; 0.5 is chance.

    None where no pair was ordered by two annotators.
    """
    same = both = 0
    for comparison in comparisons:
        ranks = [r.ranks for r in comparison.rankings if r.status == "submitted" and r.ranks is not None]
        for i in range(len(comparison.responses)):
            for j in range(i):
                votes = [1 if r[i] < r[j] else -1 for r in ranks if r[i] != r[j]]
                up = votes.count(1)
                both += len(votes) * (len(votes) - 1) // 2
                same += up * (up - 1) // 2 + (len(votes) - up) * (len(votes) - up - 1) // 2
    return same / both if both else None
