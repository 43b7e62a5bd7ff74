"""The evaluation stage: both models answer the same held-out prompts, and the gate decides.

Baseline and candidate get the same prompts with the same seeds (common random numbers), so that what differs is the
models. Each answer is measured by the simulated annotators' utility, the reward model's score, its length, whether
it ended by itself, and how much it repeats itself. Both models also go through the suites that the configuration names.

    accord gate --baseline run:sft-... --candidate run:dpo-... --config gate.yaml

The run holds `samples.jsonl` (one row a prompt and sample), `suites.jsonl` (one row an item of a suite), `verdict.json`
with its signature, `metrics.json` and the page `report.html`. A killed evaluation continues with the parts it has.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from accord.bundled import data_path
from accord.chat import answer, decode_response, encode_prompt
from accord.errors import DataError, UsageError
from accord.models import Model, load_tokenizer
from accord.records import Message, Prompt, Row, content_id, messages_as_dicts, read_jsonl, write_jsonl
from accord.runs import DataFile, Run, Runs, Source
from accord.sampling.shared import SharedSampler
from eval.comparison import check_prompt_slices, check_slices, compare, slices
from eval.config import EvalConfig
from eval.gate import SUITE, make_verdict, write_verdict
from eval.likelihood_cache import LIKELIHOODS
from eval.measured import measured_answers, measured_suites
from eval.promotion import override_behind
from eval.report import write_report
from eval.rows import Answer, MeasuredAnswer, Outcome, Reward, Sample, SuiteItem, seed_for
from eval.signing import signing_key
from eval.suites.kind import SuiteRow
from eval.suites.measure import loaded_once, sample_replies, score_items
from eval.suites.suite import Suite, find_suite, read_items
from reward.scorers import Scorer, scorer_of_model


def evaluate(
    config: EvalConfig,
    runs: Runs,
    sampler: SharedSampler,
    baseline: Model,
    candidate: Model,
    reward_model: Model | Scorer | None = None,
    show: Callable[[str], None] = click.echo,
) -> Run:
    """Compare `candidate` with `baseline`; returns the finished run, whose `verdict.json` holds the decision.

    Args:
        config: what to measure, and the gate's margins.
        runs: where the run goes, and where those of the lineage are.
        sampler: the round's sampler, which takes over each model's weights in turn.
        baseline: the model that the candidate would replace.
        candidate: the model to decide on.
        reward_model: scores the answers, and may be a judge or a function; without it there is no "reward" metric.
        show: takes a line of progress now and then.

    Raises:
        DataError: a bad prompt file, or a prompt that stands in it twice.
        UsageError: the reward is gated, and there is no reward model, or a model that is none; a margin is for a group
            that is not there or too small; the user's key to sign the verdict with cannot be used.
        TamperedError: promoted.json, which says how the baseline came into use, was changed.
    """
    scorer = scorer_of_model(reward_model) if isinstance(reward_model, Model) else reward_model
    prompt_file = data_path(config.prompts)
    prompts = dict(list(read_prompts(prompt_file).items())[: config.max_prompts])
    groups = read_groups(prompt_file, config.prompt_group)
    check_prompt_slices(config, prompts, groups)
    suites = [(suite, read_items(suite, config.max_suite_items)) for suite in map(find_suite, config.suites)]
    for suite, rows in suites:
        for name in config.gate.keys() & suite.metrics.keys():
            check_slices(config, name, [row.template or row.id for row in rows], [row.group for row in rows])
    sources: dict[str, Source] = {"baseline": baseline, "candidate": candidate}
    if scorer:
        sources["reward_model"] = scorer
    elif "reward" in config.gate:
        raise UsageError("the gate has a margin for 'reward', so it needs a reward model; name one")
    sources |= {"prompts": DataFile(prompt_file)}
    sources |= {SUITE + suite.name: DataFile(suite.file) for suite, _ in suites}

    with runs.begin("eval", config, sources) as run:
        if run.is_done:
            return run
        # Needed at the end only; what is wrong with them should not show after hours.
        signing_key()
        override_behind(baseline, runs)

        # measure: every part is written when it is complete, and reused after a kill
        parts = run.path / "checkpoints"
        measured: dict[str, list[MeasuredAnswer]] = {}
        outcomes: dict[str, list[list[Outcome]]] = {}
        for role, model in (("baseline", baseline), ("candidate", candidate)):
            sample = functools.partial(_answer, model, sampler, prompts, config, role, show)
            answers = _part(parts / f"answers.{role}.jsonl", Answer, sample)
            score = functools.partial(_rewards, scorer, prompts, answers, role, show)
            rewards = _part(parts / f"rewards.{role}.jsonl", Reward, score)
            measured[role] = _measure(prompts, answers, rewards)
            outcomes[role] = _go_through(suites, model, sampler, config, scorer, role, runs, parts, show)

        samples = [
            Sample(
                id=b.prompt_id, sample=b.sample, prompt=prompts[b.prompt_id], group=groups.get(b.prompt_id),
                baseline=b, candidate=c,
            )
            for b, c in zip(measured["baseline"], measured["candidate"], strict=True)
        ]  # fmt: skip
        items = [
            SuiteItem(
                suite=suite.name, id=row.id, template=row.template, group=row.group,
                item=row.model_dump(exclude={"id", "template", "group"}), baseline=b, candidate=c,
            )
            for (suite, rows), before, after in zip(suites, *outcomes.values(), strict=True)
            for row, b, c in zip(rows, before, after, strict=True)
        ]  # fmt: skip
        conclude(config, run, runs, samples, items, baseline, candidate, scorer)
    return run


def conclude(
    config: EvalConfig, run: Run, runs: Runs, samples: Sequence[Sample], items: Sequence[SuiteItem],
    baseline: Model, candidate: Model, reward_model: Model | Scorer | None,
) -> None:  # fmt: skip
    """Decide on what was measured, and finish the run: rows, verdict, page and figures."""
    write_jsonl(run.path / "samples.jsonl", samples)
    write_jsonl(run.path / "suites.jsonl", items)
    measured = measured_answers(samples) | measured_suites(items)
    metrics = compare(measured, config)
    override = override_behind(baseline, runs)
    by_group = slices(measured, config)
    count = Counter(item.suite for item in items)
    suites = {reference: count[find_suite(reference).name] for reference in config.suites}
    verdict = make_verdict(run, runs, metrics, by_group, baseline, candidate, reward_model, suites, override)
    write_verdict(run.path / "verdict.json", verdict)
    write_report(run, runs)
    figures: dict[str, object] = {
        "verdict": verdict.outcome, "answers": len(samples), "suite_items": len(items)
    }  # fmt: skip
    for metric in metrics:
        for part in ("baseline", "candidate", "difference", "low", "high"):
            figures["_".join(filter(None, (metric.name, metric.slice, part)))] = getattr(metric, part)
    run.finish(figures)


def read_prompts(path: Path) -> dict[str, list[Message]]:
    """The prompts of a file by id; a prompt without an id is named by its content.

    Raises:
        DataError: a bad line, an id or a prompt that occurs twice, or fewer than two prompts.
    """
    prompts: dict[str, list[Message]] = {}
    contents: set[str] = set()
    for row in read_jsonl(path, Prompt):
        content = content_id(messages_as_dicts(row.prompt))
        name = row.id or content
        if name in prompts or content in contents:
            raise DataError(
                f"{path}: the prompt '{name}' occurs twice; items must differ to count, remove one"
            )
        contents.add(content)
        prompts[name] = row.prompt
    if len(prompts) < 2:
        raise DataError(f"{path}: holds one prompt; a comparison with an interval needs at least two")
    return prompts


def read_groups(path: Path, column: str) -> dict[str, str]:
    """The group of every prompt that has one, by the prompt's id; `column` holds it."""
    groups = {}
    for row in read_jsonl(path, Prompt):
        group = (row.model_extra or {}).get(column)
        if group is not None:
            groups[row.id or content_id(messages_as_dicts(row.prompt))] = str(group)
    return groups


def distinct_bigrams(text: str) -> float:
    """The share of a text's neighbouring word pairs that are different ones; 1 where there is no pair.

    distinct-2 of Li et al. 2016 (https://arxiv.org/abs/1510.03055), by answer instead of over all answers.
    """
    words = text.lower().split()
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _answer(
    model: Model, shared: SharedSampler, prompts: dict[str, list[Message]], config: EvalConfig, role: str,
    show: Callable[[str], None],
) -> list[Answer]:  # fmt: skip
    """One model's answers, `samples_per_prompt` to each prompt."""
    wanted = [(name, sample) for name in prompts for sample in range(config.samples_per_prompt)]
    seeds = [seed_for(config.seed, *key) for key in wanted]
    tokenizer = load_tokenizer(model)
    encoded = {name: encode_prompt(tokenizer, prompt) for name, prompt in prompts.items()}
    show(f"{role}: sampling {len(wanted)} answers from {model.reference}")
    completions = shared.use(model).sample(
        [encoded[name] for name, _ in wanted], seeds, config.max_response_tokens, config.temperature
    )
    return [
        Answer(
            prompt_id=name, sample=sample, seed=seed, finish=completion.finish,
            text=decode_response(tokenizer, completion.token_ids),
            tokens=len(completion.token_ids) - (completion.finish == "eos"),
        )
        for (name, sample), seed, completion in zip(wanted, seeds, completions, strict=True)
    ]  # fmt: skip


def _rewards(
    scorer: Scorer | None, prompts: dict[str, list[Message]], answers: Sequence[Answer], role: str,
    show: Callable[[str], None],
) -> list[Reward]:  # fmt: skip
    if scorer is None:
        return []
    show(f"{role}: scoring {len(answers)} answers with {scorer.reference}")
    # A message must not be empty; an empty answer is scored as a blank.
    conversations = [[*prompts[a.prompt_id], *answer(a.text or " ")] for a in answers]
    return [Reward(reward=value) for value in scorer.score(conversations)]


def _go_through(
    suites: Sequence[tuple[Suite, list[SuiteRow]]], model: Model, sampler: SharedSampler, config: EvalConfig,
    scorer: Scorer | None, role: str, runs: Runs, parts: Path, show: Callable[[str], None],
) -> list[list[Outcome]]:  # fmt: skip
    """The outcomes of every suite under one model, each suite's written when it is complete."""
    policy = loaded_once(model)

    def outcomes(suite: Suite, rows: list[SuiteRow]) -> list[Outcome]:
        show(f"{role}: {suite.name}, {len(rows)} items")
        if suite.is_scored:
            return score_items(suite, rows, model, policy, runs.root / LIKELIHOODS)
        return sample_replies(suite, rows, model, sampler, config, scorer)

    return [
        _part(parts / f"suite.{suite.name}.{role}.jsonl", Outcome, functools.partial(outcomes, suite, rows))
        for suite, rows in suites
    ]


def _measure(
    prompts: dict[str, list[Message]], answers: Sequence[Answer], rewards: Sequence[Reward]
) -> list[MeasuredAnswer]:
    from feedback.simulate import utility

    return [
        MeasuredAnswer(
            **a.model_dump(), utility=utility(prompts[a.prompt_id], a.text),
            reward=rewards[i].reward if rewards else None, distinct_bigrams=distinct_bigrams(a.text),
        )
        for i, a in enumerate(answers)
    ]  # fmt: skip


RowT = TypeVar("RowT", bound=Row)


def _part(path: Path, row_type: type[RowT], make: Callable[[], list[RowT]]) -> list[RowT]:
    """The rows that an earlier, killed evaluation left at `path`, or else new ones, written there."""
    if path.exists():
        return read_jsonl(path, row_type)
    rows = make()
    if rows:
        write_jsonl(path, rows)
    return rows
