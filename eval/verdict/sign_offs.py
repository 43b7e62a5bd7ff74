"""Sign-offs: what a reviewer says of a verdict, signed with the reviewer's own key.

    accord review eval-0123456789ab --sign "read all answers that got worse" --approve
    accord review eval-0123456789ab --sign "two of them name a real person" --block

Each is a file of its own in the folder `sign-offs` beside the verdict, and is never changed: who thinks otherwise later
signs again, and a key's last decision counts. A sign-off names the SHA-256 of the verdict, so it is about no other one,
and of the sign-offs that its signer saw, so that none of those can be taken away unnoticed.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from accord.digests import file_digest
from accord.errors import TamperedError, UsageError
from accord.page.markdown import one_line
from accord.records import content_id
from accord.runs import SIGN_OFFS, Run
from accord.text_files import describe
from eval.verdict.gate import read_verdict
from eval.verdict.signing import (
    OWN,
    Signature,
    canonical,
    check_signature,
    public_key,
    sign,
    signing_key,
    trusted_keys,
)

Decision = Literal["approve", "block", "comment"]


class Statement(BaseModel):
    """What a reviewer signs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run: str
    verdict: str
    """SHA-256 of verdict.json."""
    decision: Decision
    comment: str
    at: str
    saw: list[str]
    """SHA-256 of each sign-off that was there."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    sign_off: Statement
    signature: Signature


@dataclass(frozen=True)
class SignOff:
    """A sign-off whose signature fits, and what the user knows of its signer."""

    statement: Statement
    fingerprint: str
    public_key: str
    digest: str
    """SHA-256 of its file."""
    signer: str
    """The comment of the key in the user's file of trusted keys."""
    is_trusted: bool

    @property
    def who(self) -> str:
        """The signer's name, as far as the user knows it, and key."""
        return f"{self.signer or ('a trusted key' if self.is_trusted else 'an unknown key')} ({self.fingerprint})"

    @property
    def named(self) -> str:
        """The same for others to read, to whom "your own" would be another's."""
        return self.fingerprint if self.signer in ("", OWN) else f"{self.signer} ({self.fingerprint})"


def add_sign_off(run: Run, comment: str, decision: Decision = "comment") -> SignOff:
    """Sign what a reviewer says of a run's verdict, as one more file beside it.

    Raises:
        UsageError: the run holds no verdict, or nothing was said of it.
        TamperedError: a sign-off that is there already is none, or of another verdict.
        AccordError: the user's key cannot be used.
    """
    read_verdict(run)
    text = one_line(comment)
    if not text:
        raise UsageError(
            "a sign-off needs a comment that others can read; write what was looked at, and what was found"
        )
    earlier = read_sign_offs(run)
    now = datetime.now(UTC)
    statement = Statement(
        run=run.id, verdict=file_digest(run.path / "verdict.json"), decision=decision, comment=text,
        at=now.isoformat(), saw=sorted(each.digest for each in earlier),
    )  # fmt: skip
    file = _File(sign_off=statement, signature=sign("sign-off", statement.model_dump(mode="json")))
    data = canonical(file.model_dump(mode="json"))
    folder = run.path / SIGN_OFFS
    folder.mkdir(exist_ok=True)
    name = f"{now:%Y%m%dT%H%M%S%f}-{content_id(file.signature.fingerprint)}.json"
    with (folder / name).open("xb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    digest = hashlib.sha256(data).hexdigest()
    return next(each for each in read_sign_offs(run) if each.digest == digest)


def read_sign_offs(run: Run) -> list[SignOff]:
    """All sign-offs of a run's verdict, oldest first, each checked: its signature, and that it is of this verdict.

    Raises:
        TamperedError: one was changed, is of another verdict, or names one that is gone.
    """
    verdict = run.path / "verdict.json"
    trusted = {each.public_key: each.comment for each in trusted_keys()}
    found = []
    for path in sorted((run.path / SIGN_OFFS).glob("*.json")):
        data = path.read_bytes()
        try:
            file = _File.model_validate_json(data)
        except ValidationError as error:
            raise TamperedError(f"{path} is no sign-off ({describe(error)}); remove it") from None
        statement, signature = file.sign_off, file.signature
        if canonical(file.model_dump(mode="json")) != data:
            raise TamperedError(
                f"{path} was changed after signing; restore it from a copy, or have it signed again"
            )
        check_signature("sign-off", statement.model_dump(mode="json"), signature, str(path))
        if statement.run != run.id or statement.verdict != file_digest(verdict):
            raise TamperedError(f"{path} is about another verdict than the one in {run.path}; remove it")
        found.append(
            SignOff(
                statement,
                signature.fingerprint,
                signature.public_key,
                hashlib.sha256(data).hexdigest(),
                trusted.get(signature.public_key, ""),
                signature.public_key in trusted,
            )
        )
    present = {each.digest for each in found}
    for each in found:
        if each.is_trusted and (gone := set(each.statement.saw) - present):
            raise TamperedError(
                f"the sign-off by {each.who} names {len(gone)} earlier one{'s' if len(gone) > 1 else ''} of which "
                f"nothing is in {run.path / SIGN_OFFS} any more; restore the folder from a copy"
            )
    return sorted(found, key=lambda each: each.statement.at)


def standing(sign_offs: Sequence[SignOff], decision: Decision) -> list[SignOff]:
    """Those of trusted keys whose last decision this is; what only comments changes no decision."""
    last = {each.public_key: each for each in sign_offs if each.statement.decision != "comment"}
    return [each for each in last.values() if each.is_trusted and each.statement.decision == decision]


def own_fingerprint() -> str:
    """Of the user's key."""
    return public_key(signing_key().public_key()).fingerprint
