"""Signatures: whose word a verdict or a promotion is.

Everybody has one Ed25519 key (RFC 8032), made on first use, in the files that OpenSSH uses, so that `ssh-keygen` reads
them, too:

    ~/.config/accord/key            the private key, for its owner's eyes only; $ACCORD_KEY names another file
    ~/.config/accord/trusted_keys   beside it: other people's public keys, one a line, each with a comment

What is signed is a JSON value in one canonical form, which is also the form it is stored in. So a file that was
changed in any byte, a space included, is not the signed one any more.
"""

import base64
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accord.errors import AccordError, DataError, TamperedError, UsageError
from accord.terminal import say
from accord.text_files import describe, write_atomically

OTHERS = "trusted_keys"
OWN = "your own"
"""The comment of the user's own key, wherever keys are listed."""


class Signature(BaseModel):
    """What stands beside a signed value: the signature in hex, and the public key that it can be checked with."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    public_key: str
    """As OpenSSH writes it: `ssh-ed25519 AAAA...`."""
    fingerprint: str
    """As `ssh-keygen -l` shows it: `SHA256:...`."""
    signature: str = Field(pattern="^[0-9a-f]{128}$")


@dataclass(frozen=True)
class TrustedKey:
    """A public key whose signatures count, and what its owner's trust file says about it."""

    public_key: str
    fingerprint: str
    comment: str


def canonical(value: Any) -> bytes:
    """The one form of a JSON value: keys sorted, two spaces, UTF-8, and each number as Python's `repr` writes it.

    `repr` of a float is the shortest text that reads back as the same double, on every platform.

    Raises:
        ValueError: a number is not finite, or a string is no Unicode text.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


# --- keys


def key_path() -> Path:
    """Where the private key is, or will be."""
    return Path(os.environ.get("ACCORD_KEY") or Path.home() / ".config" / "accord" / "key").expanduser()


def signing_key() -> Ed25519PrivateKey:
    """The user's private key; made on first use.

    Raises:
        UsageError: the file is readable by others, is no such key, or would be in a repository or a run.
        AccordError: it cannot be written or read.
    """
    path = key_path()
    try:
        if not path.exists():
            _make_key(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UsageError(f"the private key {path} is open to other users; run `chmod 600 {path}`")
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise AccordError(
            f"the private key {path} cannot be used ({error.strerror}); set ACCORD_KEY to a file that can"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # broken, or under a passphrase
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{path} is no Ed25519 private key in OpenSSH's format without a passphrase; set ACCORD_KEY to one, or to "
            "a new file"
        )
    return key


def _make_key(path: Path) -> None:
    if os.environ.get("ACCORD_KEY"):
        for folder in path.resolve().parents:
            if (folder / ".git").exists() or (folder / "record.json").exists():
                raise UsageError(
                    f"ACCORD_KEY names a file in {folder}, where a private key could be published by mistake; name one "
                    "outside of repositories and runs"
                )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():  # another process was faster
            return
        private = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
        write_atomically(path, private, mode=0o600)
    say(f"a key to sign verdicts with was made: {path} (keep it to yourself)", err=True)


def public_key(key: Ed25519PublicKey, comment: str = "") -> TrustedKey:
    """A public key in the form in which people exchange it."""
    text = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    digest = base64.b64encode(ssh_key_fingerprint(key, hashes.SHA256())).decode().rstrip("=")
    return TrustedKey(text, f"SHA256:{digest}", comment)


def read_public_key(line: str) -> TrustedKey:
    """The key of a line `ssh-ed25519 AAAA... comment`.

    Raises:
        ValueError: it is no such line.
    """
    parts = line.split(maxsplit=2)
    return public_key(_load(" ".join(parts[:2])), " ".join(parts[2:]).strip())


def _load(text: str) -> Ed25519PublicKey:
    try:
        key = load_ssh_public_key(text.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("no Ed25519 key")
    return key


def trusted_keys() -> list[TrustedKey]:
    """The user's own key, if there is one yet, and those in the file of trusted keys.

    Raises:
        DataError: a line of the file is no key.
    """
    own = [public_key(signing_key().public_key(), OWN)] if key_path().exists() else []
    path = key_path().with_name(OTHERS)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    others = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            try:
                others.append(read_public_key(line))
            except ValueError:
                raise DataError(
                    f"{path}:{number}: is no Ed25519 public key; write `ssh-ed25519 AAAA... comment`, or remove it"
                ) from None
    return [*own, *others]


def trust(file_or_key: str) -> list[TrustedKey]:
    """Add the public keys in a file, or one that is given as text, to the trusted ones; returns those that are new.

    Raises:
        UsageError: there is no public key in it.
    """
    # A key may contain slashes, and its comment may be too long for a file's name.
    is_file = not file_or_key.startswith("ssh-") and Path(file_or_key).is_file()
    try:
        text = Path(file_or_key).read_text(encoding="utf-8") if is_file else file_or_key
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        found = [read_public_key(line) for line in lines]
    except ValueError:
        found = []
    if not found:
        what = file_or_key if is_file else "that"
        raise UsageError(
            f"{what} is neither an Ed25519 public key nor a file of such keys, one a line; have its owner send what "
            "`accord keys show` prints, and put a key in quotes"
        )
    path = key_path().with_name(OTHERS)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = {each.public_key for each in trusted_keys()}
        new = list({each.public_key: each for each in found if each.public_key not in known}.values())
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before and not before.endswith("\n"):
            before += "\n"
        added = "".join(f"{each.public_key} {each.comment}".strip() + "\n" for each in new)
        if new:
            write_atomically(path, before + added, mode=0o600)
    return new


# --- signatures


def sign(kind: str, value: Any) -> Signature:
    """The user's signature of a JSON value.

    Args:
        kind: what it is ("verdict"); a signature of one kind is none of another.
        value: what is signed, in its canonical form.
    """
    key = signing_key()
    own = public_key(key.public_key())
    return Signature(
        public_key=own.public_key, fingerprint=own.fingerprint, signature=key.sign(_message(kind, value)).hex()
    )  # fmt: skip


def verify(kind: str, value: Any, signature: Signature, what: str) -> None:
    """Check that a trusted key signed this value.

    Args:
        kind: as it was signed.
        value: what should have been signed.
        signature: what stands beside it.
        what: the value's name, for the message.

    Raises:
        TamperedError: value or signature were changed.
        AccordError: it was signed by a key that the user does not trust.
    """
    check_signature(kind, value, signature, what)
    if signature.public_key not in {each.public_key for each in trusted_keys()}:
        raise AccordError(
            f"{what} was signed by the key {signature.fingerprint}, which you do not trust; compare that fingerprint "
            f"with the one that its owner tells you, then run `accord keys trust '{signature.public_key}'`"
        )


def check_signature(kind: str, value: Any, signature: Signature, what: str) -> None:
    """Check that the key that the signature names, whosever it is, signed this value; arguments as of `verify`.

    Raises:
        TamperedError: value or signature were changed.
    """
    try:
        key = _load(signature.public_key)
        found = public_key(key)
        key.verify(bytes.fromhex(signature.signature), _message(kind, value))
        is_whole = (found.public_key, found.fingerprint) == (signature.public_key, signature.fingerprint)
    except (ValueError, InvalidSignature):
        is_whole = False
    if not is_whole:
        raise TamperedError(
            f"{what}: the signature does not fit, so it or what it signs was changed after signing; restore both from "
            "a copy, or evaluate again"
        )


def _message(kind: str, value: Any) -> bytes:
    return f"accord {kind}\n".encode() + canonical(value)


def read_signature(path: Path) -> Signature:
    """A signature in a file of its own, which must be written exactly as `canonical` writes it.

    Raises:
        TamperedError: there is none, or it was changed.
    """
    try:
        data = path.read_bytes()
        found = Signature.model_validate_json(data)
    except FileNotFoundError:
        raise TamperedError(f"{path} is missing, and nothing unsigned counts; evaluate again") from None
    except ValidationError as error:
        raise TamperedError(f"{path} is no signature ({describe(error)}); evaluate again") from None
    if canonical(found.model_dump()) != data:
        raise TamperedError(f"{path} was changed after signing; restore it from a copy, or evaluate again")
    return found
