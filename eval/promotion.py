"""Promotion: the candidate of a passing, untampered evaluation becomes the model in use.

    accord promote eval-0123456789ab
    accord promote eval-0123456789ab --override "the fall in length is what we wanted"

Where the gate asks for approvals, as many other people have to have signed off (eval/verdict/sign_offs.py); a block by
any trusted key stops a promotion, override or not.

`check_verdict` asks who signed the verdict, and compares everything that it names with what is there now.
`promoted.json` beside the runs keeps all promotions, the last one in force: each is signed, and names the SHA-256 of
the one before, so that none can be changed or taken out from between. `promoted/<run>/README.md` is the model's card.
"""

import operator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from accord.bundled import data_path
from accord.digests import file_digest
from accord.errors import AccordError, TamperedError, UsageError
from accord.models.references import Model, resolve
from accord.page.markdown import one_line
from accord.records import content_id
from accord.runs import SIGN_OFFS, Run, Runs
from accord.text_files import describe, write_atomically
from eval.config import LmEval
from eval.measuring import lm_eval
from eval.page.model_card import model_card
from eval.rows import SUITE
from eval.suites.suite import suite_files
from eval.verdict.gate import (
    EXIT_CODES,
    SIGNATURE,
    Outcome,
    Override,
    Subject,
    Verdict,
    decide,
    gate_digest,
    read_verdict,
    record_digest,
    source_digests,
    weights_digests,
)
from eval.verdict.sign_offs import SignOff, read_sign_offs, standing
from eval.verdict.signing import Signature, canonical, public_key, read_signature, sign, signing_key, verify
from reward.function import digest_without_running
from reward.scorers import names_a_function, scorer_of

WORDS_OF_A_REASON = 4


class PromotionRefusedError(AccordError):
    """The candidate has no verdict that lets it pass; `exit_code` is the verdict's own, or 1."""

    def __init__(self, message: str, outcome: Outcome | None = None):
        super().__init__(message)
        self.exit_code = EXIT_CODES[outcome] if outcome else 1


class Promotion(BaseModel):
    """One promotion: which model replaced which, on what verdict, by whom."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    model: str
    model_digest: str
    replaces: str
    replaces_digest: str
    verdict: str
    """The evaluation's run."""
    verdict_digest: str
    """SHA-256 of its verdict.json."""
    outcome: Outcome
    override: str | None
    """Why it was promoted against its verdict, if it was."""
    approvals: dict[str, str] = Field(default_factory=dict, exclude_if=operator.not_)
    """SHA-256 of each sign-off that approved the verdict, by its key's fingerprint."""
    promoted_by: str
    """The fingerprint of the key that signed this."""
    promoted_at: str
    previous: str | None
    """SHA-256 of the entry before, with its signature; None for the first."""


class Entry(BaseModel):
    """What promoted.json has of one promotion."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    promotion: Promotion
    signature: Signature


ENTRIES = TypeAdapter(list[Entry])


def promote(run: Run, runs: Runs, override: str | None = None) -> Promotion:
    """Name the candidate in `promoted.json` beside the runs, after every check of `check_verdict`, and write its card.

    Args:
        run: the evaluation, or the candidate's own run (its last finished evaluation is then taken).
        runs: where both are.
        override: why a candidate that did not pass is promoted all the same.

    Raises:
        PromotionRefusedError: no passing verdict, and no override; approvals are missing, or somebody blocks it.
        UsageError: the override says too little, or the candidate passed and needs none.
        TamperedError: something is not what the verdict was reached on.
        AccordError: the verdict, or an earlier promotion, was signed by a key that is not trusted.
    """
    reason = None if override is None else one_line(override)
    if reason is not None and len(reason.split()) < WORDS_OF_A_REASON:
        raise UsageError(
            f"an override needs a reason that others can judge, of {WORDS_OF_A_REASON} words or more; write why this "
            "model is better than its verdict"
        )
    verdict = check_verdict(run, runs, any_outcome=reason is not None)
    if reason is not None and verdict.outcome == "PASS":
        raise UsageError(f"run {verdict.run} came to the verdict PASS; promote it without --override")
    approvals = check_sign_offs(runs.load(verdict.run))
    path = runs.root / "promoted.json"
    with FileLock(runs.root / ".promoted.lock"):
        entries = read_entries(runs)
        evaluation = runs.load(verdict.run)
        promotion = Promotion(
            model=verdict.candidate.reference, model_digest=verdict.candidate.digest,
            replaces=verdict.baseline.reference, replaces_digest=verdict.baseline.digest,
            verdict=verdict.run, verdict_digest=file_digest(evaluation.path / "verdict.json"),
            outcome=verdict.outcome, override=reason,
            approvals={each.fingerprint: each.digest for each in approvals},
            promoted_by=public_key(signing_key().public_key()).fingerprint,
            promoted_at=datetime.now(UTC).isoformat(timespec="seconds"),
            previous=content_id(entries[-1].model_dump(mode="json"), 64) if entries else None,
        )  # fmt: skip
        signed_by = read_signature(evaluation.path / SIGNATURE).fingerprint
        card = model_card(evaluation, runs, verdict, signed_by, override_of(promotion), approvals)
        write_atomically(card_path(promotion, runs), card)
        entry = Entry(promotion=promotion, signature=sign("promotion", promotion.model_dump(mode="json")))
        write_atomically(path, canonical(ENTRIES.dump_python([*entries, entry], mode="json")))
    return promotion


def card_path(promotion: Promotion, runs: Runs) -> Path:
    """Where a promoted model's card is: by its run, or for a model from outside by the evaluation's."""
    is_run = promotion.model.startswith("run:")
    name = promotion.model.removeprefix("run:") if is_run else promotion.verdict
    return runs.root / "promoted" / name / "README.md"


def keys_behind(promotion: Promotion, runs: Runs) -> str:
    """Whose keys signed verdict and promotion, in words."""
    trained = read_signature(runs.root / promotion.verdict / SIGNATURE).fingerprint
    if trained == promotion.promoted_by:
        return (
            f"{trained} signed both the verdict and the promotion; where two people shall look, the other one promotes "
            "with a key of their own (`accord keys --help`)"
        )
    return f"{trained} signed the verdict, {promotion.promoted_by} the promotion"


def approvals_of(promotion: Promotion, runs: Runs) -> list[SignOff]:
    """The sign-offs that a promotion rests on."""
    sign_offs = read_sign_offs(runs.load(promotion.verdict)) if promotion.approvals else []
    return [each for each in sign_offs if each.digest in promotion.approvals.values()]


def override_of(promotion: Promotion) -> Override | None:
    """What a promotion says about the verdict that it went against; None for one that followed its verdict."""
    if promotion.override is None:
        return None
    return Override(
        verdict=promotion.verdict, outcome=promotion.outcome, reason=promotion.override, by=promotion.promoted_by,
        at=promotion.promoted_at,
    )  # fmt: skip


def override_behind(model: Model, runs: Runs) -> Override | None:
    """The override by which this very model came into use, if its last promotion was one.

    Raises:
        TamperedError: promoted.json was changed.
        AccordError: it is signed by a key that is not trusted.
    """
    promotions = [each.promotion for each in read_entries(runs)]
    last = next((each for each in reversed(promotions) if each.model_digest == model.digest), None)
    return None if last is None else override_of(last)


def read_entries(runs: Runs) -> list[Entry]:
    """All promotions, oldest first, each checked: its signature, and that it follows the one before.

    Raises:
        TamperedError: the file is not what was signed, or a sign-off that a promotion rests on is gone.
        AccordError: an entry is signed by a key that is not trusted.
    """
    path = runs.root / "promoted.json"
    if not path.exists():
        return []
    data = path.read_bytes()
    try:
        entries = ENTRIES.validate_json(data)
    except ValidationError as error:
        raise TamperedError(
            f"{path} holds something that is no signed promotion ({describe(error)}); restore it from a copy, or, if "
            "an earlier accord wrote it, move it away and promote again"
        ) from None
    previous = None
    for number, entry in enumerate(entries, start=1):
        what = f"{path}: promotion {number} ({entry.promotion.model})"
        verify("promotion", entry.promotion.model_dump(mode="json"), entry.signature, what)
        if entry.promotion.previous != previous:
            raise TamperedError(
                f"{what} does not follow the one before it, so one was changed, removed or moved; restore the file "
                "from a copy"
            )
        if entry.promotion.promoted_by != entry.signature.fingerprint:
            raise TamperedError(
                f"{what} names another key than it is signed by; restore the file from a copy"
            )
        _check_approvals(entry.promotion, runs.root / entry.promotion.verdict)
        previous = content_id(entry.model_dump(mode="json"), 64)
    if canonical(ENTRIES.dump_python(entries, mode="json")) != data:
        raise TamperedError(f"{path} was changed after the last promotion; restore it from a copy")
    return entries


def check_list(runs: Runs) -> None:
    """Whether the list of promotions is whole: `read_entries`, and an entry for every card that one has left.

    Raises:
        TamperedError: it is not. The cards are what tells of entries that were cut off at the end.
        AccordError: an entry is signed by a key that is not trusted.
    """
    listed = {card_path(entry.promotion, runs) for entry in read_entries(runs)}
    for card in sorted((runs.root / "promoted").glob("*/README.md")):
        if card not in listed:
            raise TamperedError(
                f"{card} is the card of a promotion that {runs.root / 'promoted.json'} does not list, so its end was "
                "cut off, or that promotion was interrupted; restore the list from a copy, or promote that model again"
            )


def _check_approvals(promotion: Promotion, evaluation: Path) -> None:
    """That the sign-offs of a promotion are still there, unless the whole evaluation was removed."""
    if not promotion.approvals or not evaluation.exists():
        return
    present = {file_digest(path) for path in (evaluation / SIGN_OFFS).glob("*.json")}
    for fingerprint, digest in promotion.approvals.items():
        if digest not in present:
            raise TamperedError(
                f"{promotion.model} was promoted on the approval of {fingerprint}, and that sign-off was changed or "
                f"removed from {evaluation / SIGN_OFFS} since; restore it from a copy"
            )


# --- what a promotion rests on


def check_sign_offs(run: Run) -> list[SignOff]:
    """The approvals of an evaluation's verdict that count: of trusted keys other than the one that signed the verdict.

    Raises:
        PromotionRefusedError: a trusted key blocks it, or fewer approve it than the gate asks for.
        TamperedError: a sign-off was changed, is of another verdict, or is gone.
    """
    sign_offs = read_sign_offs(run)
    if blocks := standing(sign_offs, "block"):
        said = "; ".join(f"{each.who}: {each.statement.comment}" for each in blocks)
        raise PromotionRefusedError(
            f"run {run.id} is blocked by {said}. Only the same key can lift that, with `accord review {run.id} --sign "
            "... --approve`"
        )
    signed_by = read_signature(run.path / SIGNATURE)
    approvals = [each for each in standing(sign_offs, "approve") if each.public_key != signed_by.public_key]
    needed = run.record.config.get("approvals") or 0
    if len(approvals) < needed:
        unknown = [each.fingerprint for each in sign_offs if not each.is_trusted]
        raise PromotionRefusedError(
            f"run {run.id} needs {needed} approval{'s' if needed > 1 else ''} by trusted keys other than the one that "
            f"signed the verdict, and has {len(approvals)}; have a reviewer run `accord review {run.id} --sign COMMENT "
            "--approve` with a key of their own"
            + (f" (not trusted here, so not counted: {', '.join(dict.fromkeys(unknown))})" if unknown else "")
        )
    return approvals


def check_verdict(run: Run, runs: Runs, any_outcome: bool = False) -> Verdict:
    """The verdict that lets a candidate be promoted, after checking who signed it and all that it rests on.

    Args:
        run: the evaluation, or the candidate's own run (its last finished evaluation is then taken).
        runs: where both are.
        any_outcome: let a verdict other than PASS through; one that was tampered with never is.

    Raises:
        PromotionRefusedError: there is no verdict, or it is not PASS.
        TamperedError: something was changed since; the message names it.
        AccordError: a key signed it that is not trusted.
    """
    run = _evaluation_of(run, runs)
    again = f"restore it, or delete {run.path} and evaluate again"
    run.check_outputs()
    verdict = read_signed_verdict(run)
    if verdict.run != run.id or verdict.outcome != decide([*verdict.metrics, *verdict.floors]):
        raise TamperedError(f"{run.path / 'verdict.json'} does not fit its own run or metrics; {again}")
    if verdict.gate != gate_digest(run.record.config):
        raise TamperedError(
            f"run {run.id}: the verdict was reached with another gate configuration than its record.json has; {again}"
        )
    if verdict.record != record_digest(run.record):
        raise TamperedError(f"run {run.id}: its record.json was changed after the verdict; {again}")
    run.check_record()
    for name, digest in verdict.evidence.items():
        if file_digest(run.path / name) != digest:
            raise TamperedError(f"run {run.id}: the verdict was reached on another {name}; {again}")
    data_files = {"prompts": data_path(run.record.config["prompts"])}
    for reference in run.record.config["suites"]:  # a user's kind is compared before anything in it is run
        data_files |= {SUITE + name: file for name, file in suite_files(reference).items()}
    for task, settings in run.record.config["lm_eval"].items():
        data_files |= lm_eval.files_of(task, LmEval.model_validate(settings))
    for role, digest in verdict.files.items():
        file = data_files.get(role)
        if file and file.exists() and file_digest(file) != digest:
            raise TamperedError(
                f"the {role.replace(':', ' ')} in {file} were changed after the evaluation; {again}"
            )
    if verdict.sources["eval"] != source_digests()["eval"]:
        raise TamperedError(
            "the code of accord's package eval is not the one that reached this verdict; install that version, or "
            f"delete {run.path} and evaluate again"
        )
    for ancestor, digest in verdict.lineage.items():
        record = runs.root / ancestor / "record.json"
        if not record.exists() or file_digest(record) != digest:
            state = "was changed after the evaluation" if record.exists() else "is gone"
            raise TamperedError(
                f"record.json of run {ancestor}, on which this verdict rests, {state}; {again}"
            )
    fresh = Runs(runs.root)  # one that has not checked any run yet
    for role in ("baseline", "candidate", "reward_model", "judge"):
        subject: Subject | None = getattr(verdict, role)
        if subject:
            _check_subject(role.replace("_", " "), subject, fresh, again)
    for ancestor in verdict.lineage:
        fresh.check(fresh.load(f"run:{ancestor}"))

    if verdict.outcome != "PASS" and not any_outcome:
        raise PromotionRefusedError(
            f"run {run.id} came to the verdict {verdict.outcome}: {verdict.reason()}; the candidate stays out "
            "(`accord report` shows the evidence)",
            verdict.outcome,
        )
    return verdict


def read_signed_verdict(run: Run) -> Verdict:
    """The verdict in an evaluation run's folder, if it is byte for byte what a trusted key signed.

    Raises:
        TamperedError: it or its signature was changed.
        AccordError: a key signed it that is not trusted.
    """
    verdict = read_verdict(run)
    path = run.path / "verdict.json"
    content = verdict.model_dump(mode="json")
    signature = read_signature(run.path / SIGNATURE)
    if canonical(content) != path.read_bytes():
        raise TamperedError(
            f"{path} was changed after signing; restore it, or delete {run.path} and evaluate again"
        )
    verify("verdict", content, signature, str(path))
    return verdict


def _evaluation_of(run: Run, runs: Runs) -> Run:
    if run.record.stage != "eval":
        evaluations = [r for r in runs.all("eval") if r.record.parents.get("candidate") == run.id]
        finished = [r for r in evaluations if r.is_done]
        if not finished:
            raise PromotionRefusedError(
                f"run {run.id} was never evaluated, so nothing says that it may replace another model; run "
                f"`accord gate --baseline REF --candidate run:{run.id} --config gate.yaml`"
            )
        run = finished[-1]
    if not run.is_done:
        raise PromotionRefusedError(f"evaluation {run.id} is {run.record.status}, not done; finish it first")
    return run


def _check_subject(role: str, subject: Subject, runs: Runs, again: str) -> None:
    """Compare what a reference names now with what was evaluated."""
    try:
        digest, weights = _digests_now(subject, runs, is_scorer=role in ("reward model", "judge"))
    except AccordError as error:
        raise TamperedError(f"the {role} {subject.reference} is not as it was evaluated: {error}") from None
    for name in sorted(weights.keys() | subject.weights.keys()):
        if weights.get(name) != subject.weights.get(name):
            raise TamperedError(f"the {role} {subject.reference}: the file {name} was changed; {again}")
    if digest != subject.digest:
        raise TamperedError(
            f"the {role} {subject.reference} is not the one that was evaluated: its files were changed; {again}"
        )


def _digests_now(subject: Subject, runs: Runs, is_scorer: bool) -> tuple[str, dict[str, str]]:
    if is_scorer and names_a_function(
        subject.reference
    ):  # whose file is compared before anything in it is run
        return digest_without_running(subject.reference), {}
    if is_scorer and not subject.run:
        return scorer_of(subject.reference, runs).digest, {}
    model = resolve(subject.reference, runs)
    return model.digest, weights_digests(model)
