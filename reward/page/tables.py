"""The rows of a report card's tables, and its worst mistakes as they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from accord.page.words import coefficient, counted, points, share
from accord.records import Message
from accord.statistics import Estimate
from reward.card.people import Mistake
from reward.card.slices import Slice
from reward.page.words import SLICES
from reward.report_card import ReportCard
from reward.rows import ScoredPair

LONGEST_SHOWN = 2_000
"""Characters of a text in the page; the whole text is in the run's files."""


@dataclass(frozen=True)
class TableRow:
    """A line of a table: a figure in words, where it lies between 0 and 1 (None: no picture), and how to read it."""

    name: str
    text: str
    items: str
    reading: str = ""
    estimate: Estimate | None = None

    @classmethod
    def of_share(cls, name: str, estimate: Estimate, unit: str, reading: str = "") -> "TableRow":
        """A share of so many units."""
        return cls(name, share(estimate), f"{estimate.items:,} {unit}", reading, estimate)

    @classmethod
    def of_slice(cls, part: Slice, name: str) -> "TableRow":
        """The accuracy on a part of the pairs."""
        items = f"{counted(part.pairs, 'pair')}, {counted(part.prompts, 'prompt')}"
        text = share(part.accuracy) if part.accuracy else "too small to say"
        return cls(name, text, items, "", part.accuracy)


def accuracy_rows(card: ReportCard) -> list[TableRow]:
    """The model beside the rules that read nothing."""
    rules = card.baselines
    others = "longer" if rules.length_only_prefers == "shorter" else "shorter"
    asked = rules.longer if others == "longer" else rules.shorter
    trained = (
        f"the rule that training pairs suggest: in {rules.longer_chosen_share:.0%} of those of unequal length the "
        "longer answer was chosen"
        if rules.longer_chosen_share is not None
        else "training pairs suggest no rule"
    )
    rows = [
        TableRow.of_share("This model", card.accuracy, "pairs", "equal scores count one half"),
        TableRow.of_share(
            f"Always the {rules.length_only_prefers} answer", rules.length_only, "pairs", trained
        ),
        TableRow.of_share(f"Always the {others} answer", asked, "pairs", "the other way round"),
    ]
    if rules.first:
        rows.append(
            TableRow.of_share(
                "Always the answer shown first", rules.first, "pairs",
                "far from one half: annotators were led by the order of display, or the order was not random",
            )
        )  # fmt: skip
    return rows


@dataclass(frozen=True)
class TablePart:
    """The parts that one property divides the pairs into."""

    title: str
    rows: list[TableRow]


def slice_groups(slices: Sequence[Slice]) -> list[TablePart]:
    """The slices with their rows, by what they differ in."""
    return [
        TablePart(
            SLICES.get(by, by[:1].upper() + by[1:]),
            [TableRow.of_slice(part, part.name) for part in slices if part.by == by],
        )
        for by in dict.fromkeys(part.by for part in slices)
    ]


def length_rows(card: ReportCard) -> list[TableRow]:
    """How the score follows length."""
    found = card.length
    answers = f"{found.answers:,} answers"
    rows = [
        TableRow(name, coefficient(estimate), answers, reading)
        for name, estimate, reading in (
            ("Correlation within prompts (Pearson)", found.pearson_within_prompts,
             "of score and log length, each less its mean over the prompt’s answers"),
            ("Correlation within prompts (Spearman)", found.spearman_within_prompts, "the same, of ranks"),
            ("Correlation over all answers (Pearson)", found.pearson,
             "also counts that some questions get long answers and high scores"),
            ("Correlation over all answers (Spearman)", found.spearman, "the same, of ranks"),
        )
        if estimate is not None
    ]  # fmt: skip
    for name, estimate in (
        ("The model prefers the longer answer", found.model_prefers_longer),
        ("The annotators prefer the longer answer", found.annotators_prefer_longer),
    ):
        if estimate is not None:
            rows.append(TableRow.of_share(name, estimate, "pairs", "of the pairs of unequal length"))
    if found.excess is not None:
        rows.append(
            TableRow("Difference of these two", points(found.excess), f"{found.excess.items:,} pairs",
                "above 0: the model likes length more than they do")
        )  # fmt: skip
    return rows


def ensemble_rows(card: ReportCard) -> list[TableRow]:
    """What the heads' disagreement tells; none without an ensemble."""
    if card.ensemble is None:
        return []
    found = card.ensemble
    rows = [
        TableRow(name, coefficient(estimate), f"{estimate.items:,} pairs", reading, estimate)
        for name, estimate, reading in (
            ("Disagreement of the heads (AUROC)", found.auroc, "0.5 is useless, 1 finds every mistake"),
            ("Disagreement relative to the difference of scores (AUROC)", found.auroc_relative,
             "the same, counted in units of the difference"),
            ("A small difference of scores alone (AUROC)", found.auroc_of_difference,
             "needs no ensemble: what disagreement has to beat"),
        )
        if estimate is not None
    ]  # fmt: skip
    rows += [TableRow.of_slice(part, f"Accuracy where disagreement is {part.name}") for part in found.thirds]
    return rows


def ceiling_rows(card: ReportCard) -> list[TableRow]:
    """Who agrees with whom; none without two votes on a pair."""
    if card.ceiling is None:
        return []
    found = card.ceiling
    return [
        TableRow.of_share("Two annotators agree", found.two_annotators, "pairs",
                          "two drawn at random who order the pair"),
        TableRow.of_share("The model agrees with one annotator", found.model_with_annotator, "pairs", "the same pairs"),
        TableRow.of_share("An annotator agrees with the others", found.annotator_with_others, "pairs",
                     "with their majority; half where they are split evenly"),
        TableRow.of_share("The model agrees with the same others", found.model_with_others, "pairs",
                     "to be compared with the line above"),
    ]  # fmt: skip


def previous_rows(card: ReportCard) -> list[TableRow]:
    """Both models on the pairs that both scored; none where there are none."""
    found = card.previous
    if found is None or found.accuracy is None or found.previous_accuracy is None or found.difference is None:
        return []
    return [
        TableRow.of_share("This model", found.accuracy, "pairs"),
        TableRow.of_share(found.name, found.previous_accuracy, "pairs"),
        TableRow("Difference", points(found.difference), f"{found.difference.items:,} pairs"),
    ]


# --- mistakes


@dataclass(frozen=True)
class MistakeView:
    """A mistake as the page shows it."""

    mistake: Mistake
    name: str
    prompt: list[Message]
    chosen: str
    rejected: str
    cut: bool
    seen: str

    @classmethod
    def of(cls, mistake: Mistake, pair: ScoredPair) -> "MistakeView":
        """A mistake with the texts of its pair."""
        chosen, rejected = ("\n\n".join(m.text for m in side) for side in (pair.chosen, pair.rejected))
        return cls(
            mistake=mistake, name=pair.id or f"heldout.jsonl, line {mistake.row + 1}", prompt=pair.prompt,
            chosen=chosen[:LONGEST_SHOWN], rejected=rejected[:LONGEST_SHOWN],
            cut=max(len(chosen), len(rejected)) > LONGEST_SHOWN, seen=_seen(mistake, pair),
        )  # fmt: skip


def _seen(mistake: Mistake, pair: ScoredPair) -> str:
    """How the annotators saw it."""
    parts = []
    if mistake.votes:
        ours, theirs, neither = mistake.votes
        parts.append(f"{counted(ours, 'annotator')} preferred the first answer, {theirs:,} the second")
        if neither:
            parts[-1] += f", {neither:,} called it a tie"
    elif pair.annotators is not None:
        parts.append(f"ranked by {counted(pair.annotators, 'annotator')}")
        if pair.agreement is not None:
            parts[-1] += f", of whom {pair.agreement:.0%} preferred the first answer"
    if pair.margin is not None:
        parts.append(f"margin {pair.margin:.2g}")
    if pair.weight is not None:
        parts.append(f"weight {pair.weight:.2f}")
    return "; ".join(parts) or "the preferences came without a word on how sure they are"
