"""Promotion: the candidate of a passing, untampered evaluation becomes the model in use."""

import json
from datetime import UTC, datetime

from accord.records import write_atomically
from accord.runs import Run, Runs
from eval.gate import check_verdict


def promote(run: Run, runs: Runs) -> dict[str, str]:
    """Name the candidate in `promoted.json` beside the runs, after every check of `gate.check_verdict`.

    The file keeps all promotions, the last one in force.

    Raises:
        PromotionRefusedError: no passing verdict.
        TamperedError: the evaluation's or the candidate's files are not the recorded ones.
    """
    verdict = check_verdict(run, runs)
    promotion = {
        "model": verdict.candidate.reference,
        "replaces": verdict.baseline.reference,
        "verdict": verdict.run,
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = runs.root / "promoted.json"
    earlier = json.loads(path.read_text()) if path.exists() else []
    write_atomically(path, json.dumps([*earlier, promotion], indent=2) + "\n")
    return promotion
