"""The feedback stage: the policy answers prompts, annotators rank the answers in Argilla, rankings become pairs.

    responses.jsonl     what the policy answered, before anyone ranked it
    queue.jsonl         the records that annotators get: the chosen comparisons, duplicates and gold
    comparisons.jsonl   the same with every annotator's answer, exactly as given; replaced at every pull
    preferences.jsonl   the pairs that can be told apart, weighted by how far their annotators can be relied on
    agreement.json      how far annotators agree, attend and follow position
    reliability.json    what was fitted to the rankings, for the reward model (feedback/belief/kept.py)
    report.html         the same as a page

Each part is kept as soon as it is whole, so a kill, or weeks of waiting for annotators, lose nothing.

    accord feedback push configs/demo.yaml      sample and push, then leave
    accord feedback pull configs/demo.yaml      pull; finished if nobody needs to answer any more
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accord.bundled import data_path
from accord.chat.tokens import decode_response, encode_prompt
from accord.data.rows import Rows, open_data
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.records import Comparison, Prompt, Response, read_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.sampling.shared import SharedSampler
from accord.terminal import say
from accord.text_files import write_jsonl
from feedback.annotation import files_of, have_annotated, planned
from feedback.argilla.people import configured_team
from feedback.asking.prompts import read_prompts
from feedback.asking.select import select_by_uncertainty, select_length_balanced, select_random
from feedback.config import FeedbackConfig, Selection

ScoreResponses = Callable[[Sequence[Comparison]], list[list[float]]]
"""Gives every response of every comparison a score."""


def gather_preferences(
    config: FeedbackConfig,
    runs: Runs,
    policy: Model,
    sampler: SharedSampler,
    wait: bool = False,
    selection_model: Model | None = None,
    score: ScoreResponses | None = None,
    prompts: Rows | None = None,
) -> Run:
    """Sample answers of `policy`, have them annotated, and turn the rankings into preferences.

    Args:
        config: see `FeedbackConfig`.
        runs: where the run is kept; the embedded Argilla keeps its data in `argilla/` beside the runs.
        policy: the model that answers.
        sampler: samples the answers.
        wait: look again until people have answered, instead of leaving.
        selection_model: the reward model behind `score`, for the run's lineage.
        score: scores responses, where the selection is by uncertainty.
        prompts: rows in place of the file that `config` names.

    Raises:
        WaitingForAnnotatorsError: people have not answered everything yet; the page stays up for them.
        DataError: the prompts, gold records or users file are bad.
    """
    config = open_data(config, runs, prompts=prompts)
    prompts_file = DataFile(data_path(config.prompts))
    sources: dict[str, Source] = {"policy": policy, "prompts": prompts_file, **files_of(config)}
    if selection_model:
        sources["selection_reward_model"] = selection_model
    with runs.begin("feedback", config, sources) as run:
        if run.is_done:
            return run
        team = configured_team(config)
        sampling = _Sampling(
            config.responses_per_prompt, config.max_response_tokens, config.temperature, config.seed
        )
        asked = read_prompts(prompts_file.path, config.max_prompts)
        sampled = _sampled(run.path / "responses.jsonl", asked, sampling, policy, sampler)
        count = min(config.max_comparisons or len(sampled), len(sampled))
        select = partial(_selected, config.selection, sampled, count, config.seed, score)
        queue = planned(config, run, team, select)
        have_annotated(config, runs, run, team, queue, wait)
    return run


@dataclass(frozen=True)
class _Sampling:
    """How the policy answers."""

    responses_per_prompt: int
    max_response_tokens: int
    temperature: float
    seed: int


def _sampled(
    path: Path, prompts: dict[str, Prompt], sampling: _Sampling, policy: Model, sampler: SharedSampler
) -> list[Comparison]:
    """What the policy answers to each prompt; kept in `path`."""
    if path.exists():
        return read_jsonl(path, Comparison)
    tokenizer = load_tokenizer(policy)
    wanted = [
        (id_, _seed(sampling.seed, id_, k)) for id_ in prompts for k in range(sampling.responses_per_prompt)
    ]
    encoded = {id_: encode_prompt(tokenizer, prompt.prompt) for id_, prompt in prompts.items()}
    say(f"feedback: the policy answers {len(prompts)} prompts, {sampling.responses_per_prompt} times each")
    completions = sampler.use(policy).sample(
        [encoded[id_] for id_, _ in wanted],
        [seed for _, seed in wanted],
        sampling.max_response_tokens,
        sampling.temperature,
    )
    answers: dict[str, list[Response]] = {id_: [] for id_ in prompts}
    for (id_, seed), completion in zip(wanted, completions, strict=True):
        text = decode_response(tokenizer, completion.token_ids)
        run_id, truncated = policy.run_id or policy.reference, completion.finish == "length"
        answers[id_].append(Response(text=text, run=run_id, seed=seed, truncated=truncated))
    comparisons = [
        Comparison(id=id_, prompt=prompt.prompt, responses=answers[id_], **_own_columns(prompt))
        for id_, prompt in prompts.items()
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


def _selected(
    selection: Selection,
    sampled: list[Comparison],
    count: int,
    seed: int,
    score: ScoreResponses | None,
) -> list[Comparison]:
    """Which of the comparisons annotators are asked about."""
    if selection == "random":
        return select_random(sampled, count, seed)
    if selection == "length_balanced":
        return select_length_balanced(sampled, count, seed)
    assert score is not None  # comes with the selection_reward_model that the configuration demands
    return select_by_uncertainty(sampled, count, score(sampled), seed)
