"""The page of a feedback run: how far its preferences can be believed, and why; one self-contained file.

    write_report(run.path / "report.html", comparisons, agreement, reliability, preferences, counts)

Annotators are "annotator 1" to "annotator n", in the order of their names, unless names are asked for; simulated ones
are always called what they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.page.render import render
from accord.page.words import percent
from accord.records import Comparison, Preference, Ranking
from accord.statistics import Estimate
from accord.text_files import write_atomically
from feedback.belief.agreement import Agreement, AnnotatorFigures
from feedback.belief.dawid_skene import dawid_skene, pair_labels
from feedback.belief.preferences import needs_adjudication
from feedback.belief.reliability import UNSETTLED, AnnotatorReliability, Reliability
from feedback.utility import SIMULATED

GOOD_AGREEMENT = 0.667
"""Krippendorff (2004, Content Analysis, p. 241) allows tentative conclusions from an alpha of at least this."""
DISPUTED_SHOWN = 8
IN_FULL = 24
"""Up to so many annotators, and warnings, stand in one table and list; of more the first to look at do."""
OUTSTANDING = 8
"""So many of the least reliable, and of the most active, are among the first to look at."""
KAPPAS_SHOWN = 50
LONGEST_SHOWN = 2_000
"""Characters of a response in the page; the whole text is in the run's files."""
FATES = {
    "kept": "became preferences",
    "tied": "tied, or without a majority",
    "undecided": "too uncertain either way",
    "identical": "of equal texts",
    "empty": "with an empty text",
    "unranked": "that nobody ranked",
    "probe": "of gold records and duplicates, which only check attention",
}
WHAT_TO_DO = {
    "position": "Tell the annotator that the order is random, and look at a few records together.",
    "length": "Ask what makes an answer good; the guidelines may seem to ask for length.",
    "adversarial": "The scale may have been understood the wrong way round. Ask before using or dropping the answers.",
    "random": "Check that the task was understood and the time was enough.",
}


def write_report(
    path: Path,
    comparisons: Sequence[Comparison],
    agreement: Agreement,
    reliability: Reliability,
    preferences: Sequence[Preference],
    counts: Mapping[str, int],
    title: str = "Feedback",
    show_names: bool = False,
) -> None:
    """Write the page.

    Args:
        path: the file.
        comparisons: with all rankings, probes included.
        agreement: of them.
        reliability: of them.
        preferences: that they gave.
        counts: what became of the pairs, as `pairwise_preferences` counts them.
        title: what the page is about, such as the run's id.
        show_names: show annotators' names in place of numbers.
    """
    names = displayed_names(agreement.annotators, show_names)
    verdict, because = believable(agreement)
    rows = {name: _annotator_row(names[name], each) for name, each in agreement.annotators.items()}
    first = first_to_look_at(agreement)
    kappas = sorted(agreement.kappa.items(), key=_in_doubt_first)[:KAPPAS_SHOWN]
    if len(agreement.kappa) <= KAPPAS_SHOWN:
        kappas = list(agreement.kappa.items())
    values: dict[str, Any] = {
        "title": title,
        "headline": verdict,
        "because": because,
        "warnings": [
            {"name": names[each.annotator], "kind": each.kind, "text": each.text, "do": WHAT_TO_DO[each.kind]}
            for each in agreement.warnings
        ],
        "agreement": agreement,
        "rows": _agreement_rows(agreement),
        "kappas": [(names[a], names[b], kappa) for (a, b), kappa in kappas],
        "warnings_in_full": IN_FULL,
        "annotators": [rows[name] for name in first],
        "other_annotators": [row for name, row in rows.items() if name not in first],
        "outstanding": OUTSTANDING,
        "disputed": _disputed(comparisons, reliability, names),
        "preferences": len(preferences),
        "weights": _weights(preferences),
        "fates": [(FATES[fate], count) for fate, count in counts.items() if count],
        "pairs": sum(counts.values()),
        "simulated": all(name.startswith(SIMULATED) for name in agreement.annotators) and bool(names),
        "shared_length": reliability.shared_length,
        "unsettled": "" if reliability.converged else UNSETTLED,
    }
    write_atomically(path, render(Path(__file__).parent, "report.html.jinja", values))


def figures(
    comparisons: Sequence[Comparison],
    agreement: Agreement,
    reliability: Reliability,
    preferences: Sequence[Preference],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Everything measured as one JSON object, by annotators' names; `summary` puts it in words."""
    verdict, because = believable(agreement)
    labels = pair_labels(comparisons)
    by_labels = dawid_skene(labels) if labels else None
    weights = [each.weight for each in preferences if each.weight is not None]
    return {
        "headline": verdict,
        "because": because,
        **agreement.as_dict(),
        "reliability": reliability.as_dict(),
        "dawid_skene": {"confusion": by_labels.confusion, "prevalence": by_labels.prevalence}
        if by_labels
        else None,
        "preferences": len(preferences),
        "mean_weight": sum(weights) / len(weights) if weights else None,
        "pairs": dict(counts),
    }


def summary(figures: Mapping[str, Any]) -> str:
    """What `figures` says, in a few plain lines (valid as Markdown)."""
    lines = [f"{figures['headline']} {figures['because']}", ""]
    for title, key in (
        ("Krippendorff's alpha of ranks", "alpha_ranks"),
        ("Krippendorff's alpha of pairs", "alpha_pairs"),
        ("Kendall's W", "kendall_w"),
    ):
        if figures[key]:
            chance = f", by chance {figures['kendall_w_by_chance']:.2f}" if key == "kendall_w" else ""
            lines.append(f"- {title}: {_number(Estimate(**figures[key]))}{chance}")
    for name, each in figures["annotators"].items():
        parts = [f"{each['submitted']} answers"]
        for title, key in (("gold", "gold"), ("self-consistency", "self_consistency")):
            if each[key]:
                parts.append(f"{title} {_share(Estimate(**each[key]))}")
        if each["first_position"]:
            share = each["first_position"]["share"]["value"]
            parts.append(f"first is best {share:.0%} (chance {each['first_position']['by_chance']:.0%})")
        if each["reliability"]:
            parts.append(f"beta {each['reliability']['beta']:.2f}".replace("-", "−"))
        if each["median_seconds"] is not None:
            parts.append(f"{each['median_seconds']:.0f} s a record")
        lines.append(f"- {name}: {', '.join(parts)}")
    if (reliability := figures.get("reliability")) and not reliability["converged"]:
        lines.append(f"- Warning: {UNSETTLED}")
    for warning in figures["warnings"]:
        lines.append(f"- Warning: {warning['annotator']} {warning['text']}")
    return "\n".join(lines)


def believable(agreement: Agreement) -> tuple[str, str]:
    """The answer to "may these preferences be believed?", and the reason, each a sentence."""
    alpha, count = agreement.alpha_ranks, len(agreement.annotators)
    named = len(agreement.warnings)
    suspects = (
        f" {named} of {count} annotators look{'s' if named == 1 else ''} unreliable, which the weights allow for."
        if named
        else ""
    )
    if not any(each.submitted for each in agreement.annotators.values()):
        return "There is nothing to believe yet.", "Nobody has submitted a ranking."
    if alpha is None:
        return (
            "Nothing here shows whether these preferences can be believed.",
            "No record was answered by two annotators, so their agreement is unknown." + suspects,
        )
    found = f"Krippendorff's alpha of the ranks is {_number(alpha)}, where 1 is perfect and 0 is chance."
    if alpha.low is None:
        return "Too few records to tell whether these preferences can be believed.", found + suspects
    rest = agreement.alpha_ranks_of_rest
    if rest is not None and rest.low is not None:
        suspects += f" Among the others alpha is {_number(rest)}."
        if rest.low > 0:
            return "With care: not all annotators can be relied on.", found + suspects
    if alpha.low <= 0:
        return "Not yet: annotators agree no better than chance.", found + suspects
    if named:
        return "With care: not all annotators can be relied on.", found + suspects
    if alpha.value < GOOD_AGREEMENT:
        return "With care: annotators agree more than chance, but often differ.", found
    return "Yes: annotators agree well.", found


def displayed_names(names: Iterable[str], show_names: bool) -> dict[str, str]:
    """What each annotator is called: by number, unless names are shown or it is a simulated one."""
    return {
        name: name if show_names or name.startswith(SIMULATED) else f"annotator {number}"
        for number, name in enumerate(sorted(names), start=1)
    }


def first_to_look_at(agreement: Agreement) -> list[str]:
    """The annotators that the page shows in its first table: all, or of more than `IN_FULL` those whom the warnings
    name, the least reliable and the most active, in this order."""
    figures = agreement.annotators
    if len(figures) <= IN_FULL:
        return list(figures)
    fitted = [(each.reliability.accuracy, name) for name, each in figures.items() if each.reliability]
    least_reliable = [name for _, name in sorted(fitted)[:OUTSTANDING]]
    most_active = sorted(figures, key=lambda name: (-figures[name].submitted, name))[:OUTSTANDING]
    named = [each.annotator for each in agreement.warnings]
    return list(dict.fromkeys([*named, *least_reliable, *most_active]))


def _in_doubt_first(each: tuple[tuple[str, str], Estimate]) -> tuple[bool, float]:
    """By kappa, those with an interval first."""
    return each[1].low is None, each[1].value


# --- pieces of the page


def _number(estimate: Estimate) -> str:
    text = f"{estimate.value:.2f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" (95% interval {estimate.low:.2f} to {estimate.high:.2f})"
    return text.replace("-", "−")


def _share(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"


@dataclass(frozen=True)
class Cell:
    """A share in the table of annotators: text, and where it lies between 0 and 1; `chance` is marked."""

    value: float
    low: float | None
    high: float | None
    chance: float | None
    items: str

    @property
    def text(self) -> str:
        """The share as a percentage."""
        return f"{self.value:.0%}"

    @property
    def interval(self) -> str:
        """Its interval, or an empty text."""
        return "" if self.low is None or self.high is None else f"{self.low:.0%} to {self.high:.0%}"


def _agreement_rows(agreement: Agreement) -> list[dict[str, Any]]:
    chance = agreement.kendall_w_by_chance
    return [
        {"name": name, "text": _number(each), "size": f"{each.items:,} {unit}", "meaning": meaning}
        for name, each, unit, meaning in (
            ("Krippendorff’s alpha, ranks (ordinal)", agreement.alpha_ranks, "responses",
             "0 is chance, 1 is perfect; from 0.67 on agreement is called tentative, from 0.8 on good"),
            ("Krippendorff’s alpha, pairs (first, tie, second)", agreement.alpha_pairs, "pairs",
             "the same for who is better of two, ties being an answer of their own"),
            ("Alpha of ranks without the annotators named above", agreement.alpha_ranks_of_rest, "responses",
             "far higher than the first line, where it is they who disagree"),
            ("Kendall’s W, mean over records", agreement.kendall_w, "records",
             f"1 is perfect; annotators who rank independently reach {chance:.2f}" if chance else ""),
        )
        if each is not None
    ]  # fmt: skip


def _annotator_row(name: str, each: AnnotatorFigures) -> dict[str, Any]:
    def cell(estimate: Estimate | None, unit: str, chance: float | None = 0.5) -> Cell | None:
        if estimate is None:
            return None
        return Cell(estimate.value, estimate.low, estimate.high, chance, f"{estimate.items:,} {unit}")

    first, model = each.first_position, each.reliability
    return {
        "name": name,
        "figures": each,
        "reliability": _model_cell(model) if model else None,
        "gold": cell(each.gold, "gold records"),
        "self": cell(each.self_consistency, "duplicates"),
        "others": cell(each.with_others, "pairs"),
        "first": cell(first.share, "records", first.by_chance) if first else None,
        "longer": cell(each.length.share, "pairs", each.length.others) if each.length else None,
    }


def _model_cell(model: AnnotatorReliability) -> Cell:
    low, high = model.accuracy_interval
    return Cell(model.accuracy, low, high, 0.5, f"{model.rankings:,} rankings")


def _weights(preferences: Sequence[Preference]) -> list[tuple[str, int, float]]:
    """How many preferences have which weight, in fifths: the range, the number, and the share of the largest number."""
    weights = [each.weight for each in preferences if each.weight is not None]
    counts = [sum(min(int(5 * weight), 4) == i for weight in weights) for i in range(5)]
    return [
        (f"{i / 5:.1f} to {(i + 1) / 5:.1f}", count, count / max(counts))
        for i, count in enumerate(counts)
        if weights
    ]


def _disputed(
    comparisons: Sequence[Comparison], reliability: Reliability, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The records on which annotators disagree most: those whose contested pairs are the most uncertain."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    ids = needs_adjudication(comparisons, reliability, bounds=(0.0, 1.0))[:DISPUTED_SHOWN]
    views = []
    for id_ in ids:
        comparison = by_id[id_]
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(comparison.responses)]
        pairs = []
        for first, letter in enumerate(letters):
            for second in range(first + 1, len(letters)):
                p = reliability.probability(id_, first, second)
                if p is not None:
                    better, worse = (letter, letters[second]) if p >= 0.5 else (letters[second], letter)
                    pairs.append(f"{better} is better than {worse}: {percent(max(p, 1 - p))}")
        views.append(
            {
                "id": id_,
                "prompt": comparison.prompt,
                "responses": [
                    {"letter": letter, "text": response.text[:LONGEST_SHOWN],
                     "cut": len(response.text) > LONGEST_SHOWN}
                    for letter, response in zip(letters, comparison.responses, strict=True)
                ],
                "rankings": [
                    _said(ranking, letters, names)
                    for ranking in sorted(comparison.rankings, key=lambda r: (r.adjudicates, r.annotator))
                    if ranking.status in ("submitted", "discarded")
                ],
                "pairs": pairs,
            }
        )  # fmt: skip
    return views


def _said(ranking: Ranking, letters: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": names.get(ranking.annotator, "an adjudicator")
        + (" (adjudicates)" if ranking.adjudicates else ""),
        "ranks": ranking.ranks if ranking.status == "submitted" else None,
        "harmful": [letters[i] for i in ranking.harmful or []],
        "reason": ranking.reason,
    }
