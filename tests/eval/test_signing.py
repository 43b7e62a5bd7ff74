"""Keys and signatures: who may read the key, what a signature covers, and whose signatures count."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_public_key,
)

from accord.cli.main import main
from accord.errors import AccordError, DataError, TamperedError, UsageError
from eval.verdict.signing import (
    canonical,
    key_path,
    public_key,
    read_signature,
    sign,
    signing_key,
    trust,
    trusted_keys,
    verify,
)

VALUE = {"outcome": "PASS", "low": -0.1, "names": ["é", "日本"]}


@contextmanager
def key_of(folder: Path) -> Iterator[Path]:
    """Another user: the key in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCORD_KEY", str(folder / "key"))
        yield folder / "key"


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Path]:
    with key_of(tmp_path / "user") as key:
        yield key


def accord(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# --- the canonical form


def test_the_canonical_form_is_these_bytes_everywhere() -> None:
    value: Any = {"b": [0.1, 1 / 3, 1e16, 1e-7, 5e-324, -0.0, 2, True, None], "a": "日本 é \n\u2028"}
    assert (
        canonical(value)
        == (
            '{\n  "a": "日本 é \\n\u2028",\n  "b": [\n    0.1,\n    0.3333333333333333,\n    1e+16,\n    1e-07,\n'
            "    5e-324,\n    -0.0,\n    2,\n    true,\n    null\n  ]\n}\n"
        ).encode()
    )
    assert canonical(json.loads(canonical(value))) == canonical(value)
    assert canonical({"x": 1, "y": 2}) == canonical({"y": 2, "x": 1})
    assert canonical("\u00e9") != canonical("e\u0301")  # what looks the same is not the same


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_has_no_one_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|surrogates"):
        canonical({"value": value})


def test_the_form_does_not_depend_on_locale_or_hashing() -> None:
    program = (
        "import sys; from eval.verdict.signing import canonical; "
        "sys.stdout.buffer.write(canonical({k: [k, 0.1 + 0.2] for k in {'\\u00f6', 'b', '\\u65e5'}}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, env=os.environ | changes
        ).stdout
        for changes in (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "1"},
            {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"},
        )
    }
    assert outputs == {canonical({k: [k, 0.30000000000000004] for k in ["b", "日", "ö"]})}


# --- the private key


def test_the_key_is_for_its_owner_only(user: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        key = signing_key()
    finally:
        os.umask(before)
    assert stat.S_IMODE(user.stat().st_mode) == 0o600
    assert stat.S_IMODE(user.parent.stat().st_mode) == 0o700
    assert "was made" in capfd.readouterr().err
    again = signing_key()
    assert again.private_bytes_raw() == key.private_bytes_raw()
    assert capfd.readouterr() == ("", "")


def test_where_the_key_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ACCORD_KEY", "")
    assert key_path() == tmp_path / ".config" / "accord" / "key"
    monkeypatch.setenv("ACCORD_KEY", "~/elsewhere/key")
    assert key_path() == tmp_path / "elsewhere" / "key"


@pytest.mark.parametrize("mark", [".git", "record.json"])
def test_no_key_is_made_in_a_repository_or_a_run(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).mkdir()
    with key_of(tmp_path / "deep" / "below") as key, pytest.raises(UsageError, match="by mistake"):
        signing_key()
    assert not key.parent.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(user: Path, mode: int) -> None:
    signing_key()
    user.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        signing_key()


def private_keys() -> dict[str, bytes]:
    ours = Ed25519PrivateKey.generate()
    openssh = (Encoding.PEM, PrivateFormat.OpenSSH)
    return {
        "empty": b"",
        "text": b"not a key",
        "half": ours.private_bytes(*openssh, NoEncryption())[:120],
        "passphrase": ours.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ),
        "rsa": generate_private_key(65537, 2048).private_bytes(*openssh, NoEncryption()),
    }


@pytest.mark.parametrize("kind", ["empty", "text", "half", "passphrase", "rsa"])
def test_what_is_no_key_is_refused_without_showing_it(user: Path, kind: str) -> None:
    content = private_keys()[kind]
    user.parent.mkdir()
    user.write_bytes(content)
    user.chmod(0o600)
    with pytest.raises(UsageError, match="is no Ed25519 private key") as error:
        signing_key()
    assert not any(line and line.decode() in str(error.value) for line in content.splitlines())
    assert user.read_bytes() == content


def test_a_folder_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with key_of(tmp_path / "file"), pytest.raises(AccordError, match="set ACCORD_KEY"):
        signing_key()


def test_processes_that_need_the_first_key_at_once_get_the_same(user: Path) -> None:
    program = (
        "import sys; from eval.verdict.signing import signing_key, public_key; sys.stdin.readline(); "
        "print(public_key(signing_key().public_key()).fingerprint)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:  # all have imported what they need before the first may begin
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert found == {public_key(signing_key().public_key()).fingerprint}
    assert [path.name for path in user.parent.iterdir() if not path.name.endswith(".lock")] == ["key"]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
def test_openssh_reads_the_key_and_has_the_same_fingerprint(user: Path) -> None:
    own = public_key(signing_key().public_key())
    shown = subprocess.run(["ssh-keygen", "-lf", user], capture_output=True, text=True, check=True).stdout
    assert shown.split()[:2] == ["256", own.fingerprint]
    shown = subprocess.run(["ssh-keygen", "-yf", user], capture_output=True, text=True, check=True).stdout
    assert shown.split() == own.public_key.split()


# --- signatures


def test_a_signature_covers_kind_and_value(user: Path) -> None:
    signature = sign("verdict", VALUE)
    verify("verdict", VALUE, signature, "it")
    # checked without our code: Ed25519 of the kind and the canonical bytes
    key: Any = load_ssh_public_key(signature.public_key.encode())
    key.verify(bytes.fromhex(signature.signature), b"accord verdict\n" + canonical(VALUE))
    with pytest.raises(TamperedError, match="does not fit"):
        verify("promotion", VALUE, signature, "it")
    for changed in (VALUE | {"outcome": "FAIL"}, VALUE | {"low": -0.10000000000000002}, VALUE | {"more": 1}):
        with pytest.raises(TamperedError, match="does not fit"):
            verify("verdict", changed, signature, "it")


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_of_a_signature_is_noticed(user: Path, tmp_path: Path, bit: int) -> None:
    path = tmp_path / "it.sig.json"
    whole = canonical(sign("verdict", VALUE).model_dump())
    path.write_bytes(whole)
    verify("verdict", VALUE, read_signature(path), "it")
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << bit)]) + whole[i + 1 :])
        with pytest.raises(TamperedError):
            verify("verdict", VALUE, read_signature(path), "it")


def test_a_missing_signature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TamperedError, match="evaluate again"):
        read_signature(tmp_path / "none.sig.json")


# --- whose signatures count


def test_a_strangers_signature_counts_once_the_key_is_trusted(tmp_path: Path, user: Path) -> None:
    with key_of(tmp_path / "stranger"):
        signature = sign("verdict", VALUE)
    with pytest.raises(AccordError, match="which you do not trust") as refused:
        verify("verdict", VALUE, signature, "it")
    assert signature.fingerprint in str(refused.value)
    command = str(refused.value).split("run `accord ")[1].rstrip("`").replace("'", "")
    assert accord(*command.split(" ", 2)).exit_code == 0  # what the message says to run
    verify("verdict", VALUE, signature, "it")
    with pytest.raises(TamperedError):
        verify("verdict", VALUE | {"outcome": "FAIL"}, signature, "it")


def test_checking_makes_no_key(tmp_path: Path, user: Path) -> None:
    with key_of(tmp_path / "stranger"):
        signature = sign("verdict", VALUE)
    with pytest.raises(AccordError, match="do not trust"):
        verify("verdict", VALUE, signature, "it")
    assert not user.exists()


def test_the_file_of_trusted_keys(tmp_path: Path, user: Path) -> None:
    lines = []
    for name in ("ada", "bob"):
        with key_of(tmp_path / name):
            lines.append(public_key(signing_key().public_key()).public_key)
    sent = tmp_path / "sent.pub"
    sent.write_text(f"# reviewers\n{lines[0]} Ada, reviewer\n\n{lines[1]}\n{lines[1]}\n")
    assert [each.comment for each in trust(str(sent))] == ["Ada, reviewer", ""]
    assert trust(f"{lines[0]} another comment") == []
    file = user.with_name("trusted_keys")
    assert file.read_text() == f"{lines[0]} Ada, reviewer\n{lines[1]}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(f"# mine\n{lines[0]} Ada, reviewer")  # by hand, without a last line break
    assert len(trust(lines[1])) == 1
    assert file.read_text() == f"# mine\n{lines[0]} Ada, reviewer\n{lines[1]}\n"
    assert [each.comment for each in trusted_keys()] == ["Ada, reviewer", ""]
    file.write_text(f"{lines[0]}\nssh-ed25519 AAAA\n")
    with pytest.raises(DataError, match=r"trusted_keys:2: is no Ed25519 public key"):
        trusted_keys()


def test_what_is_no_public_key_is_not_trusted(tmp_path: Path, user: Path) -> None:
    signing_key()
    for wrong in ("", "nobody", "ssh-ed25519 AAAA", "ssh-ed25519 " + "A" * 5000, str(tmp_path), str(user)):
        with pytest.raises(UsageError, match="neither an Ed25519 public key nor a file") as error:
            trust(wrong)
        assert "PRIVATE" not in str(error.value)
    assert not user.with_name("trusted_keys").exists()


def test_the_commands(tmp_path: Path, user: Path) -> None:
    shown = json.loads(accord("keys", "show", "--json").stdout)
    assert shown["file"] == str(user) and shown["trusted"] == []
    assert accord("keys", "trust", f"{shown['public_key']} me").stdout == "trusted already\n"
    with key_of(tmp_path / "ada"):
        other = json.loads(accord("keys", "show", "--json").stdout)
    added = accord("keys", "trust", f"{other['public_key']} Ada")
    assert added.stdout == f"trusted: {other['fingerprint']} Ada\n"
    text = accord("keys", "show").stdout
    assert f"trusted:     {other['fingerprint']} Ada" in text and shown["public_key"] in text
    secret = user.read_text().splitlines()[1:-1]
    assert not any(line in text + added.output for line in secret)
    refused = accord("keys", "trust", "nobody")
    assert refused.exit_code == 2 and refused.stderr.startswith("error: that is neither")
