"""A finished feedback run as a data set that others can use: preferences for TRL, all rankings, and a data card.

    preferences.jsonl   prompt, chosen, rejected, weight, margin, agreement, annotators: what TRL's trainers read
    comparisons.jsonl   every record with every answer, gold and duplicates included
    README.md           who annotated what, when, by which guidelines, how far they agree, and what was dropped

Annotators appear under pseudonyms: the same person has the same one in every export from one folder of runs, and
without the key in that folder nobody can tell who it is, not even by trying names.
"""

import hashlib
import hmac
import json
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from accord.bundled import data_path
from accord.errors import UsageError
from accord.page.words import label
from accord.records import Comparison, Preference, read_jsonl
from accord.runs import Run, Runs
from accord.text_files import write_atomically, write_jsonl
from feedback.argilla.tasks import guidelines_of, read_guidelines
from feedback.page.report import summary
from feedback.utility import SIMULATED

KEY_FILE = "pseudonyms.key"


def export_data_set(run: Run, runs: Runs, output: Path, with_names: bool = False) -> dict[str, int]:
    """Write the run's data set into the folder `output`, and return the number of rows of each file.

    Args:
        run: a finished feedback run; its files are checked against their hashes first.
        runs: the runs that it belongs to, with the key of the pseudonyms.
        output: a folder that is new or empty.
        with_names: keep the annotators' names.

    Raises:
        UsageError: the folder holds something already, or the run only joins others.
        TamperedError: the run's files are not the recorded ones.
    """
    runs.check(run)
    if "task" not in run.record.config and run.record.parents:
        parts = ", ".join(run.record.parents.values())
        raise UsageError(f"{run.id} joins the rankings of {parts}; export each of these")
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty; give a new folder")
    comparisons = read_jsonl(run.path / "comparisons.jsonl", Comparison)
    path = run.path / "preferences.jsonl"
    preferences = read_jsonl(path, Preference) if path.stat().st_size else []
    figures = json.loads((run.path / "agreement.json").read_text(encoding="utf-8"))

    if not with_names:
        renamed = pseudonyms(comparisons, runs.root / KEY_FILE)
        comparisons = [_renamed(comparison, renamed) for comparison in comparisons]
        figures["annotators"] = {renamed[name]: each for name, each in figures["annotators"].items()}
        figures["warnings"] = [
            each | {"annotator": renamed[each["annotator"]]} for each in figures["warnings"]
        ]
    write_jsonl(output / "preferences.jsonl", preferences)
    write_jsonl(output / "comparisons.jsonl", comparisons)
    write_atomically(output / "README.md", data_card(run, comparisons, len(preferences), figures))
    return {"preferences.jsonl": len(preferences), "comparisons.jsonl": len(comparisons)}


def pseudonyms(comparisons: list[Comparison], key_file: Path) -> dict[str, str]:
    """A pseudonym for every annotator, by a keyed hash; the key is made on first use, for its owner's eyes only.

    Simulated annotators keep their names: they are nobody, and what they did must stay recognisable.
    """
    if not key_file.exists():
        write_atomically(key_file, secrets.token_bytes(32), mode=0o600)
    key = key_file.read_bytes()
    names = {ranking.annotator for comparison in comparisons for ranking in comparison.rankings}
    names |= {name for comparison in comparisons for name in comparison.assigned_to or []}
    return {
        name: name
        if name.startswith(SIMULATED)
        else f"annotator-{hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:10]}"
        for name in names
    }


def data_card(run: Run, comparisons: list[Comparison], preferences: int, figures: dict[str, Any]) -> str:
    """The data set's README.md, with the front matter that data set hubs read."""
    config = run.record.config
    rankings = [ranking for comparison in comparisons for ranking in comparison.rankings]
    moments = sorted(ranking.submitted_at for ranking in rankings if ranking.submitted_at)
    annotators = Counter(ranking.annotator for ranking in rankings if ranking.status == "submitted")
    asked = [comparison for comparison in comparisons if not comparison.is_probe]
    probabilities = [each.selection_probability for each in asked if each.selection_probability is not None]
    is_simulated = config["annotators"] == "simulated"
    front = {
        "pretty_name": f"Preferences of {run.id}",
        "tags": ["preference", "rlhf", *(["simulated"] if is_simulated else ["human-feedback"])],
        "configs": [
            {"config_name": "preferences", "data_files": "preferences.jsonl", "default": True},
            {"config_name": "comparisons", "data_files": "comparisons.jsonl"},
        ],
    }
    dropped = [f"- {label(reason)}: {count}" for reason, count in run.record.dropped.items() if count]
    statuses = Counter(ranking.status for ranking in rankings)
    task, guidelines = config.get("task"), config.get("guidelines")
    text = read_guidelines(data_path(guidelines)) if guidelines else None
    if task:
        how = f"""- Task: {task}; {len(asked[0].responses)} answers a record, in random order, models unnamed.
- {config["annotators_per_record"]} annotators wanted for each record; assignment: {config["assignment"]}.
- Chosen by `{config.get("selection", "review")}`; probability of being asked {_range(probabilities)}
  (`selection_probability`)."""
        seen = guidelines_of(task, text).replace("## ", "### ")
    else:
        how = "- Collected elsewhere, and read from a file; how answers were shown and records chosen is not known."
        seen = "They are not known; state them before you publish."
    people = "SIMULATED annotators (programs whose opinions are a formula)" if is_simulated else "people"
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# Preferences of {run.id}

{preferences} preferences between answers of a language model, from {len(asked)} comparisons, annotated by
{len(annotators)} {people}. Made by accord; `preferences.jsonl` is in TRL's preference format.

## Who and when

First answer {moments[0] if moments else "none"}, last {moments[-1] if moments else "none"} (UTC).

| annotator | records annotated |
|---|---|
{chr(10).join(f"| {name} | {count} |" for name, count in sorted(annotators.items()))}

## How

{how}
- Checks mixed in: {sum(each.duplicate_of is not None for each in comparisons)} duplicates in the opposite order,
  {sum(each.gold_ranks is not None for each in comparisons)} gold records. They yield no preferences.
- Answers: {", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))}.

## How far to believe it

{summary(figures)}

`weight` is |2p - 1|, where p is the probability that the chosen answer is the better one under a model of each
annotator's reliability, liking for early places and liking for length; `agreement` is the share of the annotators
who preferred one and preferred this one; `margin` is there only where annotators stated a strength.

## What was dropped

{chr(10).join(dropped) or "Nothing."}

## Limits

The answers are a model's and may be wrong or offensive; records that annotators flagged carry `harmful`. Reasons are
free text: read them before publishing. Whoever publishes this states the licence.

## Guidelines that annotators saw

{seen}"""


def _range(values: list[float]) -> str:
    if not values:
        return "unknown"
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _renamed(comparison: Comparison, names: dict[str, str]) -> Comparison:
    assigned = comparison.assigned_to
    return comparison.model_copy(
        update={
            "rankings": [
                ranking.model_copy(update={"annotator": names[ranking.annotator]})
                for ranking in comparison.rankings
            ],
            "assigned_to": [names[name] for name in assigned] if assigned is not None else None,
        }
    )
