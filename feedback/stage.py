"""The feedback stage: the policy answers prompts, annotators judge the answers in Argilla, judgements become pairs.

    responses.jsonl     what the policy answered, before anyone judged it
    queue.jsonl         the records that annotators get: the chosen comparisons, duplicates and gold
    comparisons.jsonl   the same with every annotator's answer, exactly as given; replaced at every pull
    preferences.jsonl   the pairs that can be told apart, weighted by how far their annotators can be relied on
    agreement.json      how far annotators agree, attend and follow position
    report.html         the same as a page

Each part is kept as soon as it is whole, so a kill, or weeks of waiting for annotators, lose nothing.

    accord feedback push configs/demo.yaml      sample and push, then leave
    accord feedback pull configs/demo.yaml      pull; finished if nobody needs to answer any more
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import click

from accord.bundled import data_path
from accord.chat import decode_response, encode_prompt
from accord.models import Model, load_tokenizer
from accord.records import Comparison, Prompt, Response, read_jsonl, write_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.sampling.shared import SharedSampler
from feedback.argilla.people import annotator_names, check_enough_annotators
from feedback.asking.plan import plan
from feedback.asking.prompts import read_prompts
from feedback.asking.select import select_by_uncertainty, select_length_balanced, select_random
from feedback.config import FeedbackConfig
from feedback.judging import files_of, have_judged

Scorer = Callable[[Sequence[Comparison]], list[list[float]]]
"""Gives every response of every comparison a score."""


def gather_preferences(
    config: FeedbackConfig,
    runs: Runs,
    policy: Model,
    sampler: SharedSampler,
    wait: bool = False,
    selection_model: Model | None = None,
    score: Scorer | None = None,
) -> Run:
    """Sample answers of `policy`, have them judged, and turn the judgements into preferences.

    Args:
        config: see `FeedbackConfig`.
        runs: where the run is kept; the embedded Argilla keeps its data in `argilla/` beside the runs.
        policy: the model that answers.
        sampler: samples the answers.
        wait: look again until people have answered, instead of leaving.
        selection_model: the reward model behind `score`, for the run's lineage.
        score: scores responses, where the selection is by uncertainty.

    Raises:
        WaitingForAnnotatorsError: people have not answered everything yet; the page stays up for them.
        DataError: the prompts, gold records or users file are bad.
    """
    prompts = DataFile(data_path(config.prompts))
    sources: dict[str, Source] = {"policy": policy, "prompts": prompts, **files_of(config)}
    if selection_model:
        sources["selection_reward_model"] = selection_model
    with runs.begin("feedback", config, sources) as run:
        if run.is_done:
            return run
        names = annotator_names(config)
        check_enough_annotators(config, names)
        queue = _planned(config, run, _sampled(config, run, policy, sampler), names, score)
        have_judged(config, runs, run, queue, wait)
    return run


def _sampled(config: FeedbackConfig, run: Run, policy: Model, sampler: SharedSampler) -> list[Comparison]:
    """What the policy answers to each prompt."""
    path = run.path / "responses.jsonl"
    if path.exists():
        return read_jsonl(path, Comparison)
    by_id = read_prompts(data_path(config.prompts), config.max_prompts)
    ids, prompts = list(by_id), list(by_id.values())
    tokenizer = load_tokenizer(policy)
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
        Comparison(id=id_, prompt=prompt.prompt, responses=responses, **_own_columns(prompt))
        for id_, prompt, responses in zip(ids, prompts, answers, strict=True)
    ]
    write_jsonl(path, comparisons)
    return comparisons


def _own_columns(prompt: Prompt) -> dict[str, Any]:
    """The columns that the user gave a prompt, such as its topic: the reward model's report card splits by them."""
    return {
        name: value
        for name, value in (prompt.model_extra or {}).items()
        if name not in Comparison.model_fields
    }


def _seed(seed: int, prompt_id: str, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}:{sample}".encode()).digest()[:4])


def _planned(
    config: FeedbackConfig, run: Run, sampled: list[Comparison], names: list[str], score: Scorer | None
) -> list[Comparison]:
    """The records that annotators get."""
    path = run.path / "queue.jsonl"
    if path.exists():
        return read_jsonl(path, Comparison)
    wanted = min(config.max_comparisons or len(sampled), len(sampled))
    if config.selection == "random":
        chosen = select_random(sampled, wanted, config.seed)
    elif config.selection == "length_balanced":
        chosen = select_length_balanced(sampled, wanted, config.seed)
    else:
        assert score is not None  # comes with the selection_reward_model that the configuration demands
        chosen = select_by_uncertainty(sampled, wanted, score(sampled), config.seed)
    queue = plan(config, chosen, data_path(config.gold) if config.gold else None, names)
    write_jsonl(path, queue)
    return queue
