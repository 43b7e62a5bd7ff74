"""Promotion: what is refused, and by which name; overrides; the list of promotions."""

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from synthetic_round import make_round, model

from accord.cli.main import main
from accord.digests import file_digest
from accord.errors import AccordError, TamperedError, UsageError
from accord.models.references import Model, resolve
from accord.records import read_jsonl
from accord.runs import DataFile, Run, Runs
from eval.conclude import Evidence, conclude
from eval.config import EvalConfig
from eval.promotion import (
    PromotionRefusedError,
    _check_subject,
    check_verdict,
    override_behind,
    promote,
    read_entries,
    read_signed_verdict,
)
from eval.rows import SUITE, Sample, SuiteItem
from eval.suites.suite import find_suite
from eval.verdict.gate import (
    SIGNATURE,
    Compared,
    Subject,
    Verdict,
    read_verdict,
    weights_digests,
    write_verdict,
)
from eval.verdict.signing import canonical, public_key, sign, signing_key, trust
from reward.function import digest_without_running, load_reward_function

REASON = "the shorter answers are what we wanted"


def accord(runs: Runs, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--runs", str(runs.root), *arguments])


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    """A round that passed; whoever changes a file of it puts it back."""
    return make_round(tmp_path_factory.mktemp("passed"), 0.1)


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(path: Path, place: int | bytes) -> Any:
    """One bit of a byte: at this index, or of the last character of this text."""
    data = bytearray(path.read_bytes())
    index = place if isinstance(place, int) else data.index(place) + len(place) - 1
    data[index] ^= 1
    return changed(path, bytes(data))


def mended(run: Run, *names: str) -> Any:
    """The run's record with the hashes that the files have now, as a clever forger would leave it."""
    record = json.loads((run.path / "record.json").read_text())
    record["outputs"] |= {name: file_digest(run.path / name) for name in names}
    return changed(run.path / "record.json", json.dumps(record, indent=2).encode() + b"\n")


def refusal(run: Run, runs: Runs, *arguments: str, exit_code: int = 1) -> str:
    """The one line with which `accord promote` refuses; nothing is promoted."""
    result = accord(runs, "promote", run.id, *arguments)
    assert result.exit_code == exit_code, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (runs.root / "promoted.json").exists() and not (runs.root / "promoted").exists()
    return result.stderr


# --- one flipped byte


@pytest.mark.parametrize("override", [(), ("--override", REASON)], ids=["plain", "override"])
@pytest.mark.parametrize(
    ("whose", "file", "place", "named"),
    [
        ("candidate", "model/model.safetensors", 0, "the candidate run:dpo-.* model/model.safetensors was changed"),
        ("candidate", "model/config.json", 1, "the candidate run:dpo-.* model/config.json was changed"),
        ("baseline", "model/model.safetensors", 0, "the baseline run:sft-.* model/model.safetensors was changed"),
        ("reward_model", "model/model.safetensors", 0, "the reward model run:reward-.* was changed"),
        ("eval", "verdict.json", b'"outcome": "P', "verdict.json was changed"),
        ("eval", "verdict.json", -1, "verdict.json was changed"),
        ("eval", SIGNATURE, b'"signature": "0'[:-1], "verdict.sig.json was changed"),
        ("eval", "samples.jsonl", 100, "samples.jsonl was changed"),
        ("eval", "suites.jsonl", 100, "suites.jsonl was changed"),
        ("eval", "report.html", 100, "report.html was changed"),
        ("eval", "record.json", b'"margin": 0.0', "another gate configuration"),
        ("eval", "record.json", b'"started_at": "2', "record.json was changed"),
        ("candidate", "record.json", b'"started_at": "2', "record.json of run dpo-.* was changed"),
        ("baseline", "record.json", b'"learning_rate": 0.000', "record.json of run sft-.* was changed"),
        ("prompts", "", 40, r"the prompts in .*prompts.heldout.jsonl were changed"),
    ],
)  # fmt: skip
def test_one_flipped_bit_is_refused_by_name(
    passed: tuple[Run, Runs], whose: str, file: str, place: int | bytes, named: str, override: tuple[str, ...]
) -> None:
    run, runs = passed
    if whose == "prompts":
        path = Path(run.record.config["prompts"])
    else:
        owner = run if whose == "eval" else runs.load(run.record.parents[whose])
        path = owner.path / file
    with flipped(path, place):
        assert re.search(named, refusal(run, runs, *override))
    assert check_verdict(run, Runs(runs.root)).outcome == "PASS"


@pytest.fixture(scope="module")
def short_verdict(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One on two metrics, so that every bit of it can be tried."""
    run, _ = make_round(tmp_path_factory.mktemp("short"), 0.1, suites=(), gate={"utility": {"margin": 0.05}})
    return run


def test_a_flipped_bit_of_any_byte_of_a_signed_verdict_is_noticed(short_verdict: Run) -> None:
    run = short_verdict
    path = run.path / "verdict.json"
    whole = path.read_bytes()
    assert read_signed_verdict(run).outcome == "PASS"
    with changed(path, whole):
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << (i % 8))]) + whole[i + 1 :])
            with pytest.raises(AccordError):
                read_signed_verdict(run)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"outcome": "PASS"', b'"outcome":  "PASS"'),
        (b'{\n  "audit"', b'{\n  "outcome": "FAIL",\n  "audit"'),
        (b"\n}\n", b"\n}"),
    ],
    ids=["a space", "a key twice", "the last line break"],
)
def test_a_change_that_means_nothing_is_one(passed: tuple[Run, Runs], old: bytes, new: bytes) -> None:
    run, runs = passed
    path = run.path / "verdict.json"
    data = path.read_bytes()
    assert old in data
    with changed(path, data.replace(old, new)), mended(run, "verdict.json"):
        assert "verdict.json was changed after signing" in refusal(run, runs)


def test_what_is_gone_is_named(passed: tuple[Run, Runs]) -> None:
    run, runs = passed
    feedback = next(each for each in runs.lineage(run) if each.record.stage == "feedback")
    with changed(feedback.path / "record.json", None):
        assert f"record.json of run {feedback.id}, on which this verdict rests, is gone" in refusal(run, runs)
    with changed(run.path / SIGNATURE, None):
        assert "verdict.sig.json is missing" in refusal(run, runs)
    # a data file need not be kept
    with changed(Path(run.record.config["prompts"]), None):
        assert check_verdict(run, Runs(runs.root)).outcome == "PASS"


def test_weights_with_a_mended_record_are_refused(passed: tuple[Run, Runs]) -> None:
    run, runs = passed
    for role in ("baseline", "candidate"):
        owner = runs.load(run.record.parents[role])
        with (
            flipped(owner.path / "model" / "model.safetensors", 0),
            mended(owner, "model/model.safetensors"),
        ):
            assert f"record.json of run {owner.id}" in refusal(run, runs)


def test_evidence_with_a_mended_record_is_refused(passed: tuple[Run, Runs]) -> None:
    run, runs = passed
    with flipped(run.path / "samples.jsonl", 100), mended(run, "samples.jsonl"):
        assert "the verdict was reached on another samples.jsonl" in refusal(run, runs)


def test_other_evaluating_code_is_refused(passed: tuple[Run, Runs], monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = passed
    monkeypatch.setattr("eval.promotion.source_digests", lambda: {"eval": "0" * 64})
    assert "the code of accord's package eval is not the one" in refusal(run, runs)


def test_a_model_from_outside_is_known_by_its_weights(tiny_model: Model, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model.folder, folder)
    runs = Runs(tmp_path / "runs")
    found = resolve(str(folder), runs)
    subject = Subject(reference=str(folder), digest=found.digest, weights=weights_digests(found))
    assert list(subject.weights) == ["model.safetensors"]
    _check_subject("baseline", subject, runs, "evaluate again")
    with flipped(folder / "model.safetensors", -1), pytest.raises(TamperedError, match=r"model\.safetensors"):
        _check_subject("baseline", subject, runs, "evaluate again")
    with (
        flipped(folder / "config.json", -2),
        pytest.raises(
            TamperedError, match=r"the baseline .* is not as it was evaluated: .* cannot be read as JSON"
        ),
    ):
        _check_subject("baseline", subject, runs, "evaluate again")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + "\n")
    with pytest.raises(TamperedError, match="its files were changed"):
        _check_subject("baseline", subject, runs, "evaluate again")
    (folder / "config.json").write_text(config)
    shutil.rmtree(folder)
    with pytest.raises(TamperedError, match=r"the baseline .* is not as it was evaluated"):
        _check_subject("baseline", subject, runs, "evaluate again")


def test_a_scoring_function_is_compared_before_it_is_run(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def f(prompts, completions, **_):\n    return [0.0 for _ in completions]\n")
    subject = Subject(reference=f"{file}:f", digest=f"f@sha256:{file_digest(file)}")
    _check_subject("reward model", subject, Runs(tmp_path), "evaluate again")
    file.write_text("raise SystemExit('was run')\n")
    with pytest.raises(TamperedError, match=r"the reward model .* is not the one that was evaluated"):
        _check_subject("reward model", subject, Runs(tmp_path), "evaluate again")


@pytest.mark.parametrize(
    ("files", "module"),
    [
        ({"rewards.py": ""}, "rewards"),
        ({"mine/__init__.py": "", "mine/rewards.py": ""}, "mine.rewards"),
        ({"mine/__init__.py": "", "mine/rewards/__init__.py": ""}, "mine.rewards"),
        ({"mine/rewards.py": ""}, "mine.rewards"),
        ({"mine/deep/rewards.py": ""}, "mine.deep.rewards"),
    ],
)
def test_a_scoring_function_of_a_module_is_compared_before_any_of_it_is_imported(
    files: dict[str, str], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in list(sys.modules) if name.split(".")[0] in ("mine", "rewards")]
    assert not names
    root = tmp_path / "site"
    monkeypatch.syspath_prepend(str(root))
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("raise SystemExit('was run')\n")
    *_, last = files
    subject = Subject(reference=f"{module}:f", digest=f"f@sha256:{file_digest(root / last)}")
    _check_subject("reward model", subject, Runs(tmp_path), "evaluate again")
    (root / last).write_text("raise SystemExit('was run, and is another one')\n")
    with pytest.raises(TamperedError, match=r"the reward model .* is not the one that was evaluated"):
        _check_subject("reward model", subject, Runs(tmp_path), "evaluate again")
    (root / last).unlink()
    with pytest.raises(TamperedError, match=f"there is no module {module}"):
        _check_subject("reward model", subject, Runs(tmp_path), "evaluate again")


def test_a_scoring_function_has_the_digest_that_it_was_evaluated_with(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def f(prompts, completions, **_):\n    return [0.0 for _ in completions]\n")
    for reference in (f"{file}:f", "trl.rewards:think_format_reward"):
        assert digest_without_running(reference) == load_reward_function(reference).digest


# --- forgeries


def forge(verdict: Verdict) -> Verdict:
    """A FAIL turned into a PASS that agrees with itself."""
    metrics = [
        metric.model_copy(update={"verdict": "PASS"}) if metric.verdict else metric
        for metric in verdict.metrics
    ]
    return verdict.model_copy(update={"outcome": "PASS", "metrics": metrics})


def test_a_consistent_forgery_with_the_old_signature(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, -0.1)
    path = run.path / "verdict.json"
    path.write_bytes(canonical(forge(read_verdict(run)).model_dump(mode="json")))
    with mended(run, "verdict.json"):
        assert "the signature does not fit" in refusal(run, runs)


def test_a_consistent_forgery_signed_by_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = make_round(tmp_path, -0.1)
    with monkeypatch.context() as stranger:
        stranger.setenv("ACCORD_KEY", str(tmp_path / "stranger" / "key"))
        write_verdict(run.path / "verdict.json", forge(read_verdict(run)))
    with mended(run, "verdict.json", SIGNATURE):
        error = refusal(run, runs)
        assert "which you do not trust" in error and "accord keys trust 'ssh-ed25519 " in error


def test_what_a_trusted_colleague_signed_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as colleague:
        colleague.setenv("ACCORD_KEY", str(tmp_path / "colleague" / "key"))
        run, runs = make_round(tmp_path, 0.1)
        theirs = sign("any", {})
    monkeypatch.setenv("ACCORD_KEY", str(tmp_path / "mine" / "key"))
    refusal(run, runs)
    assert not (tmp_path / "mine").exists()
    trust(f"{theirs.public_key} the colleague")
    assert accord(runs, "promote", run.id).exit_code == 0
    card = next(runs.root.glob("promoted/*/README.md")).read_text()
    assert theirs.fingerprint in card
    assert read_entries(runs)[0].promotion.promoted_by != theirs.fingerprint
    monkeypatch.setenv("ACCORD_KEY", str(tmp_path / "nobody" / "key"))
    verified = accord(runs, "runs", "verify")
    assert verified.exit_code == 1 and "promoted.json                UNKNOWN KEY" in verified.stdout


def test_an_unsigned_verdict_of_an_earlier_accord(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, 0.1)
    content = json.loads((run.path / "verdict.json").read_text()) | {"schema_version": 1}
    for new in ("evidence", "sources", "lineage", "record", "baseline_override"):
        del content[new]
    (run.path / "verdict.json").write_text(json.dumps(content))
    (run.path / SIGNATURE).unlink()
    record = json.loads((run.path / "record.json").read_text())
    del record["outputs"][SIGNATURE]
    (run.path / "record.json").write_text(json.dumps(record))
    with mended(run, "verdict.json"):
        error = refusal(run, runs)
    assert "the unsigned verdict of an earlier accord" in error and "evaluate again" in error


# --- overrides


@pytest.mark.parametrize(("change", "outcome", "code_"), [(-0.1, "FAIL", 10), (-0.02, "INCONCLUSIVE", 11)])
def test_an_override_lets_other_verdicts_through_and_is_shown(
    tmp_path: Path, change: float, outcome: str, code_: int
) -> None:
    run, runs = make_round(tmp_path, change)
    assert f"came to the verdict {outcome}" in refusal(run, runs, exit_code=code_)
    result = accord(runs, "promote", run.id, "--override", f"  {REASON}\n")
    assert result.exit_code == 0
    (entry,) = read_entries(runs)
    assert entry.promotion.override == REASON and entry.promotion.outcome == outcome
    by = sign("any", {}).fingerprint
    assert entry.promotion.promoted_by == entry.signature.fingerprint == by
    assert f"override: {by} let it pass for this reason: {REASON}" in result.stdout
    card = ModelCard.load(next(runs.root.glob("promoted/*/README.md")))
    assert "**Promoted against its verdict.**" in card.text and REASON in card.text and by in card.text
    assert "override" in (card.data.tags or []) and f"**{outcome}**" in card.text
    assert "does **not** show" in card.text


@pytest.mark.parametrize("reason", ["", "ok", "we want it", "\n \t x y"])
def test_an_override_needs_a_reason(passed: tuple[Run, Runs], reason: str) -> None:
    run, runs = passed
    assert "a reason that others can judge" in refusal(run, runs, "--override", reason, exit_code=2)


def test_a_pass_needs_no_override(passed: tuple[Run, Runs]) -> None:
    run, runs = passed
    assert "promote it without --override" in refusal(run, runs, "--override", REASON, exit_code=2)


def test_no_override_without_a_verdict(passed: tuple[Run, Runs]) -> None:
    run, runs = passed
    baseline = runs.load(run.record.parents["baseline"])
    assert "never evaluated" in refusal(baseline, runs, "--override", REASON)


def test_a_later_report_says_that_its_baseline_was_an_override(tmp_path: Path) -> None:
    first, runs = make_round(tmp_path, -0.1)
    assert "promoted against" not in (first.path / "report.html").read_text()
    promote(first, runs, REASON)
    parents = {role: runs.load(run) for role, run in first.record.parents.items()}
    models = {role: model(run) for role, run in parents.items()}
    assert override_behind(models["baseline"], runs) is None

    # the model that came into use so is what the next one is compared with
    config = EvalConfig.model_validate(first.record.config)
    files = {
        "prompts": DataFile(Path(config.prompts)),
        SUITE + "sentence_pairs": DataFile(find_suite("sentence_pairs").file),
    }
    swapped = {"baseline": parents["candidate"], "candidate": parents["baseline"]}
    with runs.begin("eval", config, {**swapped, "reward_model": parents["reward_model"], **files}) as run:
        samples = read_jsonl(first.path / "samples.jsonl", Sample)
        items = read_jsonl(first.path / "suites.jsonl", SuiteItem)
        compared = Compared(models["candidate"], models["baseline"], models["reward_model"])
        evidence = Evidence(samples, items, read_verdict(first).suites)
        conclude(run, runs, config.rules, compared, evidence, config.max_contaminated_share)
    behind = read_verdict(run).baseline_override
    assert behind is not None and (behind.reason, behind.outcome, behind.verdict) == (
        REASON,
        "FAIL",
        first.id,
    )
    report = (run.path / "report.html").read_text()
    assert "The baseline was promoted against its own verdict," in report and REASON in report
    promote(run, runs, "back to the model that we had before")
    card = (runs.root / "promoted" / parents["baseline"].id / "README.md").read_text()
    assert (
        "**The model it was compared with was promoted against its own verdict**" in card and REASON in card
    )


# --- the list of promotions


@pytest.fixture
def promoted_twice(tmp_path: Path) -> tuple[Run, Runs]:
    run, runs = make_round(tmp_path, -0.1)
    for _ in range(2):
        promote(run, Runs(runs.root), REASON)
    return run, runs


def test_a_flipped_bit_of_any_byte_of_the_list_is_noticed(promoted_twice: tuple[Run, Runs]) -> None:
    _, runs = promoted_twice
    path = runs.root / "promoted.json"
    whole = path.read_bytes()
    assert len(read_entries(runs)) == 2
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << (i % 8))]) + whole[i + 1 :])
        with pytest.raises(AccordError):
            read_entries(runs)


def test_entries_cannot_be_taken_out_moved_or_changed(promoted_twice: tuple[Run, Runs]) -> None:
    run, runs = promoted_twice
    path = runs.root / "promoted.json"
    first, second = json.loads(path.read_text())
    for entries in ([second], [second, first], [first, first]):
        path.write_bytes(canonical(entries))
        with pytest.raises(TamperedError, match="does not follow the one before"):
            read_entries(runs)
    path.write_bytes(canonical([first | {"promotion": first["promotion"] | {"override": None}}, second]))
    result = accord(runs, "promote", run.id, "--override", REASON)
    assert result.exit_code == 1 and "promotion 1 (run:dpo-" in result.stderr
    verified = accord(runs, "runs", "verify", "--json")
    assert verified.exit_code == 1
    assert list(json.loads(verified.stdout)["problems"]) == ["promoted.json"]
    assert "promoted.json                TAMPERED" in accord(runs, "runs", "verify").stdout


def test_an_entry_that_was_cut_off_is_noticed_by_its_card(promoted_twice: tuple[Run, Runs]) -> None:
    _, runs = promoted_twice
    path = runs.root / "promoted.json"
    whole = path.read_bytes()
    assert accord(runs, "runs", "verify").exit_code == 0
    for left in ([], None):
        if left is None:
            path.unlink()
        else:
            path.write_bytes(canonical(left))
        verified = accord(runs, "runs", "verify")
        assert verified.exit_code == 1 and "promoted.json                TAMPERED" in verified.stdout
        assert "is the card of a promotion that" in verified.stderr
        path.write_bytes(whole)


def test_both_keys_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, runs = make_round(tmp_path, 0.1)
    alone = accord(runs, "promote", run.id)
    assert "signed both the verdict and the promotion" in alone.stdout
    trains = signing_key().public_key()
    monkeypatch.setenv("ACCORD_KEY", str(tmp_path / "reviewer" / "key"))
    assert "nobody else; who reviews what others train" in accord(runs, "keys", "show").stdout
    trust(public_key(trains).public_key)
    reviewed = accord(runs, "promote", run.id).stdout
    assert f"{public_key(trains).fingerprint} signed the verdict, " in reviewed
    assert public_key(signing_key().public_key()).fingerprint in reviewed


def test_an_unsigned_list_of_an_earlier_accord(passed_round: tuple[Run, Runs]) -> None:
    run, runs = passed_round
    (runs.root / "promoted.json").write_text('[{"model": "run:dpo-0", "verdict": "eval-0"}]\n')
    result = accord(runs, "promote", run.id)
    assert result.exit_code == 1 and "move it away and promote again" in result.stderr


def test_a_promotion_is_no_verdict(promoted_twice: tuple[Run, Runs]) -> None:
    run, runs = promoted_twice
    signature = read_entries(runs)[0].signature
    (run.path / SIGNATURE).write_bytes(canonical(signature.model_dump()))
    with mended(run, SIGNATURE), pytest.raises(TamperedError, match="signature does not fit"):
        check_verdict(runs.load(run.id), runs)


def test_promotions_at_once_are_all_kept(passed_round: tuple[Run, Runs]) -> None:
    run, runs = passed_round
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: promote(run, Runs(runs.root)), range(4)))
    assert len(read_entries(runs)) == 4


def test_refusals_have_their_type(tmp_path: Path) -> None:
    run, runs = make_round(tmp_path, -0.1)
    with pytest.raises(PromotionRefusedError):
        promote(run, runs)
    with pytest.raises(UsageError):
        promote(run, runs, "no")
