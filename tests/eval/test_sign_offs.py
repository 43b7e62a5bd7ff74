"""Sign-offs: approvals that a promotion needs, blocks that stop it, and whatever is done to their files."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from synthetic_round import copied, make_round

from accord.cli.main import main
from accord.digests import file_digest
from accord.errors import TamperedError, UsageError
from accord.runs import SIGN_OFFS, Run, Runs
from eval.page.report import rebuild
from eval.promotion import read_entries
from eval.verdict.gate import SIGNATURE, read_verdict
from eval.verdict.sign_offs import add_sign_off, read_sign_offs, standing
from eval.verdict.signing import canonical, public_key, signing_key, trust

As = Callable[[str], AbstractContextManager[str]]


def accord(runs: Runs, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs.root), *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    gate = {"utility": {"margin": 0.05}, "approvals": 2}
    return make_round(tmp_path_factory.mktemp("approvals"), 0.2, gate=gate, suites=())


@pytest.fixture
def evaluated(made: tuple[Run, Runs], tmp_path: Path) -> tuple[Run, Runs]:
    return copied(made, tmp_path)


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[As]:
    """Ann, Bob and Mallory with a key each; the trainer, whose key signed the verdict, trusts the first two."""

    @contextmanager
    def as_person(name: str) -> Iterator[str]:
        with monkeypatch.context() as person:
            person.setenv("ACCORD_KEY", str(tmp_path / name / "key"))
            yield public_key(signing_key().public_key()).public_key

    from eval.verdict.signing import OTHERS, key_path

    trusted = key_path().with_name(OTHERS)
    before = trusted.read_bytes() if trusted.exists() else None
    for name in ("ann", "bob"):
        with as_person(name) as key:
            pass
        trust(f"{key} {name.title()}")
    yield as_person
    trusted.unlink() if before is None else trusted.write_bytes(before)


def refused(run: Run, runs: Runs, *arguments: str) -> str:
    result = accord(runs, "promote", run.id, *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (runs.root / "promoted.json").exists()
    return result.stderr


def approve(people: As, run: Run, *names: str) -> None:
    for name in names:
        with people(name):
            add_sign_off(run, f"{name} read the answers that got worse", "approve")


def test_approvals_are_needed_and_counted(evaluated: tuple[Run, Runs], people: As) -> None:
    run, runs = evaluated
    assert read_verdict(run).outcome == "PASS"
    assert (
        "needs 2 approvals by trusted keys other than the one that signed the verdict, and has 0"
        in refused(run, runs)
    )
    approve(people, run, "ann")
    approve(people, run, "ann")  # one key is one approval
    assert "and has 1;" in refused(run, runs)
    # the trainer's own key, and one that is not trusted, do not count
    signed = accord(runs, "review", run.id, "--sign", "fine", "--approve")
    assert signed.exit_code == 0 and "your approval does not count" in signed.stderr
    approve(people, run, "mallory")
    error = refused(run, runs)
    assert "and has 1;" in error and "not trusted here, so not counted: SHA256:" in error
    approve(people, run, "bob")
    promoted = accord(runs, "promote", run.id)
    assert promoted.exit_code == 0, promoted.output
    assert "approved: Ann (SHA256:" in promoted.output and "approved: Bob (SHA256:" in promoted.output
    assert "fine" not in promoted.output
    card = next(runs.root.glob("promoted/*/README.md")).read_text()
    assert "bob read the answers that got worse" in card
    assert len(read_entries(runs)[0].promotion.approvals) == 2


def test_an_approval_that_is_removed_later_is_noticed(evaluated: tuple[Run, Runs], people: As) -> None:
    run, runs = evaluated
    approve(people, run, "ann", "bob")
    assert accord(runs, "promote", run.id).exit_code == 0
    assert accord(runs, "runs", "verify").exit_code == 0
    last = sorted((run.path / SIGN_OFFS).glob("*.json"))[-1]
    last.unlink()
    verified = accord(runs, "runs", "verify")
    assert verified.exit_code == 1 and "promoted.json                TAMPERED" in verified.stdout
    with pytest.raises(TamperedError, match=r"was promoted on the approval of SHA256:.*changed or removed"):
        read_entries(runs)
    shutil.rmtree(run.path)  # the space of a whole evaluation may be freed
    assert len(read_entries(runs)) == 1


def test_a_block_by_a_trusted_key_stops_it_until_it_is_lifted(
    evaluated: tuple[Run, Runs], people: As
) -> None:
    run, runs = evaluated
    approve(people, run, "ann", "bob")
    with people("bob"):
        add_sign_off(run, "one answer names a real person", "block")
    error = refused(run, runs)
    assert "is blocked by Bob (SHA256:" in error and "names a real person" in error
    with people("bob"):
        add_sign_off(run, "still thinking")  # a comment lifts nothing
    assert "is blocked by Bob" in refused(run, runs)
    approve(people, run, "bob")
    assert [len(standing(read_sign_offs(run), each)) for each in ("approve", "block")] == [2, 0]
    with people("mallory"):
        add_sign_off(run, "I do not like it", "block")  # nobody trusts that key
    assert accord(runs, "promote", run.id).exit_code == 0


def test_an_override_replaces_no_approval_and_lifts_no_block(tmp_path: Path, people: As) -> None:
    gate = {"utility": {"margin": 0.05}, "approvals": 1}
    run, runs = make_round(tmp_path, -0.2, gate=gate, suites=())
    reason = ("--override", "the fall is what we wanted")
    assert "needs 1 approval by trusted keys" in refused(run, runs, *reason)
    approve(people, run, "ann")
    with people("bob"):
        add_sign_off(run, "not like this", "block")
    assert "is blocked by Bob" in refused(run, runs, *reason)
    approve(people, run, "bob")
    assert accord(runs, "promote", run.id, *reason).exit_code == 0


def test_forged_and_moved_sign_offs_are_refused(
    evaluated: tuple[Run, Runs], people: As, tmp_path: Path
) -> None:
    run, runs = evaluated
    approve(people, run, "ann", "bob")
    first, _ = sorted((run.path / SIGN_OFFS).glob("*.json"))
    data = first.read_bytes()
    for forged, named in (
        (data.replace(b'"approve"', b'"comment"'), "the signature does not fit"),
        (data.replace(b"ann read", b"ANN read"), "the signature does not fit"),
        (data + b"\n", "was changed after signing"),
        (b"{}", "is no sign-off"),
    ):
        first.write_bytes(forged)
        assert named in refused(run, runs)
    # Mallory's key under a statement of Ann's
    with people("mallory"):
        from eval.verdict.signing import sign

        stolen = json.loads(data)
        stolen["signature"] = sign("verdict", stolen["sign_off"]).model_dump()
    first.write_bytes(canonical(stolen))
    assert "the signature does not fit" in refused(run, runs)
    first.write_bytes(data)
    # one that somebody saw is gone
    first.unlink()
    assert "names 1 earlier one of which nothing is" in refused(run, runs)
    first.write_bytes(data)
    # of another verdict
    (tmp_path / "other").mkdir()
    other, others = make_round(
        tmp_path / "other", 0.25, seed=1, suites=(), gate={"utility": {"margin": 0.05}}
    )
    (other.path / SIGN_OFFS).mkdir()
    shutil.copy(first, other.path / SIGN_OFFS)
    with pytest.raises(TamperedError, match="is about another verdict"):
        read_sign_offs(other)
    assert "is about another verdict" in accord(others, "promote", other.id).stderr
    assert accord(runs, "promote", run.id).exit_code == 0


def test_what_the_command_says(evaluated: tuple[Run, Runs], people: As) -> None:
    run, runs = evaluated
    assert "nothing signed yet" in accord(runs, "review", run.id).output
    with pytest.raises(UsageError, match="needs a comment"):
        add_sign_off(run, " \n ")
    lacking = accord(runs, "review", run.id, "--approve")
    assert lacking.exit_code == 2 and "--approve needs a comment that others can read" in lacking.stderr
    assert accord(runs, "review", runs.all("dpo")[0].id, "--sign", "x").exit_code == 2
    with people("ann"):
        assert accord(runs, "review", run.id, "--sign", "looks\nfine", "--approve").exit_code == 0
    shown = accord(runs, "review", run.id).output
    assert shown.startswith("approve") and "Ann (SHA256:" in shown and "looks fine" in shown
    [row] = json.loads(accord(runs, "review", run.id, "--json").output)
    assert (row["decision"], row["signer"], row["trusted"], row["saw"]) == ("approve", "Ann", True, [])
    assert row["verdict"] == file_digest(run.path / "verdict.json")


def test_the_page_of_a_signed_off_run_names_the_signers(evaluated: tuple[Run, Runs], people: As) -> None:
    run, runs = evaluated
    own = (run.path / "report.html").read_bytes()
    assert b"Not without reviewers." in own and b"2 people other than" in own
    assert rebuild(run, runs) == run.path / "report.html"
    approve(people, run, "ann")
    with people("bob"):
        add_sign_off(run, "<script>alert(1)</script> names a person", "block")
    path = rebuild(run, runs)
    page = path.read_text()
    assert path == run.path / "report.signed.html" and "Reviewers block this candidate." in page
    assert "by Ann" in page and "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert (run.path / "report.html").read_bytes() == own
    run.check_outputs()  # what was signed later changes nothing of the run
    assert str(path) in accord(runs, "report", run.id).output


def test_markdown_for_a_pull_request(evaluated: tuple[Run, Runs], people: As, tmp_path: Path) -> None:
    run, runs = evaluated
    approve(people, run, "ann")
    result = accord(runs, "report", run.id, "--markdown")
    assert result.exit_code == 0
    assert result.output.startswith("### \u2705 accord: PASS\n")
    html = MarkdownIt("commonmark").enable("table").render(result.output)
    assert html.count("<table>") == 1 and "Simulated annotators' utility" in result.output
    assert "> Nothing about safety was measured" in result.output
    assert (
        "not measured: bias, harmful requests" in result.output
        and "approve by `Ann (SHA256:" in result.output
    )
    written = accord(runs, "report", run.id, "--markdown", "--output", str(tmp_path / "summary.md"))
    assert (tmp_path / "summary.md").read_text() == result.output and written.exit_code == 0
    # only what is signed is summed up
    (run.path / SIGNATURE).write_text("{}")
    assert accord(runs, "report", run.id, "--markdown").exit_code == 1
