"""A fine-tuning's report card: what it gained on held-out rows, what it keeps, how it answers, what it knows by heart.

    card, samples = examine(config.card, base, tuned, tokenizer, Material(heldout=rows, examples=rows, train=dataset))
    card.parts[0].change.value                  # the held-out loss after minus before, nats a token
    card.metrics()                              # the flat figures for metrics.json

The tuned model stands beside its base, and beside its base with demonstrations in its prompt, on the same rows.
Intervals are 95%; whole conversations are resampled (`accord.statistics.Bootstrap`), and there is none for fewer than
ten. What each part's figures are, and how they are made, stands in `sft/card/`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from accord.models.references import Model
from accord.statistics import Estimate
from sft.card.answers import Answers, Quote, SampleRow, answers, read
from sft.card.canaries import CanaryFound, judge
from sft.card.config import CardConfig
from sft.card.copied import copied_runs
from sft.card.data import DataCard
from sft.card.heldout import MODELS, Part, part, parts
from sft.card.measure import Material, Outcome, Plan, loaded
from sft.card.scores import Score
from sft.card.tasks import Labelled, labelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FewShot(BaseModel):
    """The demonstrations in the base's prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    examples: int
    left_out: int
    """Held-out rows that do not fit behind them."""


class ReportCard(BaseModel):
    """Every figure of a fine-tuning's report card; `model_dump_json` writes it, `model_validate_json` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    heldout_rows: int
    """That there are; `parts[0].rows` of them were measured."""
    parts: list[Part]
    """All held-out rows first, then each source's, where there are several; empty without held-out rows."""
    few_shot: FewShot | None
    retention: Part | None
    answers: Answers | None
    tasks: list[Labelled]
    canaries: list[CanaryFound]
    data: DataCard | None

    @property
    def memorised(self) -> list[CanaryFound]:
        """The canaries that the training taught."""
        return [each for each in self.canaries if each.memorised]

    def metrics(self) -> dict[str, float | int | None]:
        """The flat figures for metrics.json; a figure that does not exist has no key. Of a source: `figure/source`."""
        found: dict[str, float | int | None] = {}
        for each in self.parts:
            found |= _of_part(each, "heldout", "" if each is self.parts[0] else f"/{each.source}")
        if self.retention:
            found |= _of_part(self.retention, "retention", "")
        if self.answers:
            for model, checks in (("tuned", self.answers.tuned), ("base", self.answers.base)):
                found |= {
                    **_with_interval(f"{model}_answers_ended", checks.ended),
                    **_with_interval(f"{model}_answers_empty", checks.empty),
                    **_with_interval(f"{model}_answers_repeating", checks.repeating),
                    f"{model}_answer_tokens": checks.tokens,
                    **_with_interval(f"{model}_answer_f1", checks.f1),
                    **{f"{model}_answer_{name}": each.value for name, each in checks.overlap.items()},
                    **_with_interval(f"{model}_answers_copied", checks.copied),
                }
            found["demonstration_answer_tokens"] = self.answers.demonstration_tokens
        for task in self.tasks:
            for model in task.accuracy:
                found |= {
                    **_with_interval(f"{model}_label_accuracy", task.accuracy[model], f"/{task.source}"),
                    **_with_interval(f"{model}_label_macro_f1", task.macro_f1[model], f"/{task.source}"),
                }
        if self.canaries:
            found |= {"canaries": len(self.canaries), "canaries_memorised": len(self.memorised)}
        return {key: value for key, value in found.items() if value is not None}


def _of_part(each: Part, what: str, source: str) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = {f"{what}_rows_measured{source}": each.rows}
    for model in each.loss:
        found |= _with_interval(f"{what}_{model}_loss", each.loss[model], source)
        found |= _with_interval(f"{what}_{model}_token_accuracy", each.accuracy[model], source)
    return {
        **found,
        **_with_interval(f"{what}_loss_change", each.change, source),
        **_with_interval(f"{what}_loss_above_few_shot", each.above_few_shot, source),
    }


def _with_interval(name: str, estimate: Estimate | None, behind: str = "") -> dict[str, float | None]:
    if estimate is None:
        return {}
    return {
        f"{name}{behind}": estimate.value, f"{name}_low{behind}": estimate.low,
        f"{name}_high{behind}": estimate.high,
    }  # fmt: skip


def examine(
    config: CardConfig,
    base: Model,
    tuned: Model,
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> tuple[ReportCard, list[SampleRow]]:
    """Measure both models, one after the other, with the same weights in memory for scores and samples.

    Args:
        config: how much to measure.
        base: what was fine-tuned.
        tuned: what became of it.
        tokenizer: of both.
        material: see there.
        seed: of the choice of rows, examples and alternatives.
        dtype: to compute in.

    Returns:
        The card, and the sampled answers.
    """
    plan = Plan(config, tokenizer, material, seed, tuned)
    with loaded(base, tokenizer, dtype) as sampler:
        before = plan.carry_out(sampler, is_base=True)
    with loaded(tuned, tokenizer, dtype) as sampler:
        after = plan.carry_out(sampler, is_base=False)
    samples, quotes = _samples(plan, before, after)
    scores: dict[str, Sequence[Score | None]] = {
        "tuned": [*after.alone, *after.documents],
        "base": [*before.alone, *before.documents],
        "few_shot": [before.few_shot.get(i) for i in range(len(after.alone) + len(after.documents))],
    }
    forgotten = dict(zip(MODELS, (after.retention, before.retention), strict=False))
    card = ReportCard(
        heldout_rows=len(material.heldout) + (len(material.documents) if material.documents else 0),
        parts=parts(scores, [*plan.sources, *plan.document_sources]),
        few_shot=FewShot(examples=len(plan.examples), left_out=len(plan.rows) - len(plan.behind_examples))
        if plan.examples and plan.rows
        else None,
        retention=part("retention", forgotten) if plan.retention else None,
        answers=answers(samples, config.max_response_tokens, config.copied_tokens, quotes),
        tasks=_tasks(plan, before, after),
        canaries=judge(material.canaries, after.ranks, before.ranks),
        data=material.data,
    )
    return card, samples


def _samples(plan: Plan, before: Outcome, after: Outcome) -> tuple[list[SampleRow], list[Quote]]:
    """The answers of both models, and the tuned one's copied runs."""
    given = [*after.samples, *before.samples]
    prompts = [plan.prompts[i] for i in plan.sampled]
    runs = copied_runs(plan.material.train, prompts * 2, [ids for ids, _ in given])
    answered = [read(plan.tokenizer, raw, run) for raw, run in zip(given, runs, strict=True)]
    rows, quotes = [], []
    for place, i in enumerate(plan.sampled):
        messages = plan.rows[i].messages
        rows.append(
            SampleRow(
                source=plan.sources[i], prompt=messages[:-1], demonstration=messages[-1].text,
                demonstration_tokens=plan.answer_tokens[i],
                before=answered[place + len(plan.sampled)], after=answered[place],
            )
        )  # fmt: skip
        if run := runs[place]:
            text = str(plan.tokenizer.decode(given[place][0][run.begin : run.begin + run.tokens]))
            row = plan.material.train[run.row]
            source = row.get("source", "")
            quotes.append(
                Quote(
                    sample=place, tokens=run.tokens, text=text, row=row.get("line", run.row + 1),
                    source=plan.material.sources[source] if plan.material.sources else str(source),
                )
            )  # fmt: skip
    return rows, quotes


def _tasks(plan: Plan, before: Outcome, after: Outcome) -> list[Labelled]:
    given = before.labels | after.labels
    found = []
    for source, rows in plan.tasks.items():
        texts = {
            model: [read(plan.tokenizer, given[model][i]).text if i in given[model] else None for i in rows]
            for model in MODELS
            if model in given
        }
        found.append(labelled(source, [plan.rows[i].messages[-1].content for i in rows], texts))
    return found
