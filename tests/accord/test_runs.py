import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from accord.config import Config
from accord.digests import file_digest
from accord.errors import AccordError, DataError, TamperedError, UsageError, WaitingForAnnotatorsError
from accord.models.references import resolve
from accord.runs import DataFile, Run, Runs, Source

ROOT = Path(__file__).parents[2]


class StageConfig(Config):
    seed: int = 0
    rate: float = 0.1


@dataclass(frozen=True)
class Thing:
    digest: str
    run_id: str | None = None


def make(runs: Runs, stage: str = "sft", config: Config | None = None, **sources: Source) -> Run:
    """A finished run with two output files."""
    with runs.begin(stage, config or StageConfig(), sources) as run:
        if not run.is_done:
            (run.path / "model").mkdir(exist_ok=True)
            (run.path / "model" / "weights").write_text("weights")
            (run.path / "rows.jsonl").write_text("{}\n")
            run.finish({"loss": 1.5}, {"too_long": 2})
    return run


def test_the_id_depends_on_stage_configuration_parents_and_inputs_only(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "a")
    config, sources = StageConfig(), {"base": Thing("x"), "data": Thing("y", "feedback-1")}

    def run_id(stage: str = "sft", config: Config = config, sources: dict[str, Thing] = sources) -> str:
        return runs.run_id_for(stage, config, sources)

    assert run_id().startswith("sft-")
    assert len(run_id()) == len("sft-") + 12
    different = [
        run_id(stage="dpo"),
        run_id(config=StageConfig(seed=1)),
        run_id(config=StageConfig(rate=0.2)),
        run_id(sources={**sources, "base": Thing("z")}),
        run_id(sources={**sources, "data": Thing("y", "feedback-2")}),
        run_id(sources={"base": Thing("x")}),
        run_id(sources={"other": Thing("x"), "data": Thing("y", "feedback-1")}),
    ]
    assert len({run_id(), *different}) == 1 + len(different)
    same = [
        Runs(tmp_path / "b").run_id_for("sft", config, sources),
        run_id(sources=dict(reversed(sources.items()))),
        run_id(config=StageConfig(seed=0, rate=1e-1)),
    ]
    assert set(same) == {run_id()}


def test_the_id_of_a_file_is_its_content_not_its_place(tmp_path: Path, runs: Runs) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("rows")
    two.write_text("rows")
    first = runs.run_id_for("sft", StageConfig(), {"data": DataFile(one)})
    assert runs.run_id_for("sft", StageConfig(), {"data": DataFile(two)}) == first
    two.write_text("Rows")
    assert runs.run_id_for("sft", StageConfig(), {"data": DataFile(two)}) != first


def test_a_missing_input_is_an_error_of_ours(tmp_path: Path, runs: Runs) -> None:
    with (
        pytest.raises(DataError, match=r"gone: cannot be read \(No such file"),
        runs.begin("sft", StageConfig(), {"data": DataFile(tmp_path / "gone")}),
    ):
        pass
    assert not runs.root.exists()


def test_a_finished_run_is_reused_and_its_record_is_complete(runs: Runs) -> None:
    first = make(runs)
    assert first.is_done
    record = json.loads((first.path / "record.json").read_text())
    assert record["status"] == "done"
    assert record["config"] == {"seed": 0, "rate": 0.1}
    assert record["seed"] == 0
    assert record["dropped"] == {"too_long": 2}
    # printf weights | sha256sum
    weights = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert record["outputs"]["model/weights"] == weights
    assert set(record["outputs"]) == {"model/weights", "rows.jsonl", "metrics.json"}
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    with runs.begin("sft", StageConfig(), {}) as again:
        assert again.is_done
        assert again.metrics == {"loss": 1.5}
    after = {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.name != ".lock"}
    assert {path: before[path] for path in after} == after


def test_an_exception_marks_the_run_as_failed_and_it_continues(runs: Runs) -> None:
    with pytest.raises(ZeroDivisionError), runs.begin("sft", StageConfig(), {}) as run:
        (run.path / "half").write_text("half")
        _ = 1 / 0
    failed = runs.load(run.id)
    assert failed.record.status == "failed"
    assert failed.record.error == "ZeroDivisionError: division by zero"
    with pytest.raises(UsageError, match="is failed, not done"):
        failed.output("half")
    with runs.begin("sft", StageConfig(), {}) as again:
        assert (again.path / "half").exists()
        assert again.record.status == "running"
        assert len(again.record.continued_at) == 1
        again.finish({})
    assert runs.load(run.id).record.error is None


def test_waiting_for_people_is_a_status_of_its_own(runs: Runs) -> None:
    with pytest.raises(WaitingForAnnotatorsError), runs.begin("feedback", StageConfig(), {}) as run:
        raise WaitingForAnnotatorsError("not yet")
    assert runs.load(run.id).record.status == "waiting"
    assert runs.load(run.id).record.error is None
    assert make(runs, "feedback").is_done


def test_a_stage_that_forgets_to_finish_is_a_bug(runs: Runs) -> None:
    with pytest.raises(RuntimeError, match="without finishing"), runs.begin("sft", StageConfig(), {}):
        pass


HOLD = """
import sys, time
from pathlib import Path
from accord.runs import Runs
sys.path.insert(0, sys.argv[2])
from test_runs import StageConfig
with Runs(Path(sys.argv[1])).begin("sft", StageConfig(), {}) as run:
    (run.path / ".metrics.json.abc.tmp").write_text("half")
    (run.path / "checkpoints").mkdir()
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_held_by_another_process_is_refused_and_continues_after_its_kill(runs: Runs) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(runs.root), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(AccordError, match=r"^run sft-\w{12} is being written by another process; [^\n]*$"),
            runs.begin("sft", StageConfig(), {}),
        ):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    (run,) = runs.all()
    assert run.record.status == "running"
    done = make(runs)
    assert done.id == run.id
    assert len(done.record.continued_at) == 1
    # What the kill left half-written is no output, and the checkpoints are gone.
    assert set(done.record.outputs) == {"model/weights", "rows.jsonl", "metrics.json"}
    assert {path.name for path in done.path.iterdir()} == {
        "model",
        "rows.jsonl",
        "metrics.json",
        "record.json",
        ".lock",
    }


def change(run: Run) -> None:
    (run.path / "model" / "weights").write_text("weight5")


def remove(run: Run) -> None:
    (run.path / "rows.jsonl").unlink()


def add(run: Run) -> None:
    (run.path / "model" / "adapter_config.json").write_text("{}")


def edit_metrics(run: Run) -> None:
    (run.path / "metrics.json").write_text('{"loss": 0.1}')


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (change, "model/weights was changed after it finished"),
        (remove, "rows.jsonl is missing"),
        (add, "model/adapter_config.json was added after it finished"),
        (edit_metrics, "metrics.json was changed"),
    ],
)
def test_a_tampered_run_is_neither_reused_nor_loaded(
    runs: Runs, tamper: Callable[[Run], None], says: str
) -> None:
    run = make(runs)
    assert resolve(f"run:{run.id}", Runs(runs.root)).digest == run.digest
    tamper(run)
    with pytest.raises(TamperedError, match=says):
        make(Runs(runs.root))
    with pytest.raises(TamperedError, match=says):
        resolve(f"run:{run.id}", Runs(runs.root))


def test_a_record_that_is_not_ours_is_refused(runs: Runs) -> None:
    run = make(runs)
    record = json.loads((run.path / "record.json").read_text())
    for content in (json.dumps({**record, "verdict": "PASS"}), json.dumps(record)[:50], "[]"):
        (run.path / "record.json").write_text(content)
        with pytest.raises(TamperedError, match="cannot be trusted"):
            runs.load(run.id)


def test_a_run_whose_parent_was_made_anew_is_not_reused(runs: Runs) -> None:
    """A parent's id does not tell what people answered: the same feedback stage may be collected twice."""
    parent = make(runs, "feedback")
    child = make(runs, "reward", preferences=parent)
    assert make(Runs(runs.root), "reward", preferences=parent).id == child.id
    for file in ("record.json", "rows.jsonl"):
        (parent.path / file).unlink()
    with runs.begin("feedback", StageConfig(), {}) as anew:
        (anew.path / "rows.jsonl").write_text('{"other": 1}\n')
        anew.finish({"loss": 1.5})
    assert anew.id == parent.id
    with pytest.raises(
        TamperedError, match=f"was made from an earlier {parent.id}, which has other content now"
    ):
        make(Runs(runs.root), "reward", preferences=anew)


def test_prefixes_find_one_run_or_say_why_not(runs: Runs) -> None:
    ids = [make(runs, "sft", StageConfig(seed=seed)).id for seed in range(17)]
    digits = [run_id.removeprefix("sft-") for run_id in ids]
    first = next(d[0] for d in digits if sum(e[0] == d[0] for e in digits) > 1)  # 17 runs, 16 first digits
    matching = sorted(run_id for run_id in ids if run_id.startswith(f"sft-{first}"))
    for reference in (first, f"run:{first}", f"sft-{first}"):
        with pytest.raises(UsageError) as caught:
            runs.load(reference)
        assert f"matches {len(matching)} runs ({', '.join(matching)})" in str(caught.value)
    for run_id in ids:
        for reference in (run_id, f"run:{run_id}", run_id[:-1], run_id.removeprefix("sft-")):
            assert runs.load(reference).id == run_id
    for reference in ("dpo", "run:", "", "sft-zzz"):
        with pytest.raises(UsageError, match=r"no run in .* matches"):
            runs.load(reference)


def test_lineage_has_parents_before_children_and_each_once(runs: Runs) -> None:
    policy = make(runs, "sft")
    pairs = make(runs, "feedback", policy=policy)
    judge = make(runs, "reward", base=policy, preferences=pairs)
    better = make(runs, "dpo", policy=policy, preferences=pairs)
    verdict = make(runs, "eval", baseline=policy, candidate=better, reward_model=judge)
    order = [run.id for run in runs.lineage(verdict)]
    assert sorted(order) == sorted([policy.id, pairs.id, judge.id, better.id, verdict.id])
    for run in runs.lineage(verdict):
        assert all(order.index(parent) < order.index(run.id) for parent in run.record.parents.values())
    assert [run.id for run in runs.lineage(policy)] == [policy.id]
    assert verdict.record.parents == {"baseline": policy.id, "candidate": better.id, "reward_model": judge.id}


def test_only_one_stage_may_do_work(runs: Runs) -> None:
    alone = Runs(runs.root, only="reward")
    with (
        pytest.raises(
            UsageError,
            match=r"^the sft stage .* is not finished; run `accord sft CONFIG` first.*\(its run will be sft-",
        ),
        alone.begin("sft", StageConfig(), {}),
    ):
        pass
    assert not runs.root.exists()
    sft = make(runs, "sft")
    assert make(alone, "sft").id == sft.id
    assert make(alone, "reward", base=sft).is_done


def test_all_lists_the_oldest_first(runs: Runs) -> None:
    made = [make(runs, stage) for stage in ("sft", "reward", "dpo")]
    for run, started in zip(made, ("2026-03-01", "2026-01-01", "2026-02-01"), strict=True):
        run.record.started_at = started
        run.save()
    assert [run.record.stage for run in runs.all()] == ["reward", "dpo", "sft"]
    (runs.root / "notes").mkdir()  # whatever else lies there is no run
    assert len(runs.all()) == 3


def test_outputs_are_found_by_file_and_by_folder(runs: Runs) -> None:
    run = make(runs)
    assert run.output("model") == run.path / "model"
    assert run.output("rows.jsonl").read_text() == "{}\n"
    for name in ("mode", "rows", "adapter", "record.json"):
        with pytest.raises(UsageError, match=f"holds no '{name}'"):
            run.output(name)


def test_a_kill_between_the_record_and_the_checkpoints_loses_nothing(runs: Runs) -> None:
    """`finish` removes the checkpoints last; if it does not come to that, the next reuse does."""
    run = make(runs)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "big").write_text("big")
    assert make(Runs(runs.root)).is_done
    assert not (run.path / "checkpoints").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_sentence_and_the_run_continues(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        runs = Runs(disk / "runs")
        for write in (_write_plain, _write_torch, _write_safetensors):
            with (
                pytest.raises(AccordError, match=r"^the disk that holds .* is full; free some space [^\n]*$"),
                runs.begin("sft", StageConfig(), {}) as run,
            ):
                write(run.path / "big")
            (run.path / "big").unlink(missing_ok=True)
            assert runs.load(run.id).record.status == "running"
        assert make(runs).is_done
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _write_plain(path: Path) -> None:
    path.write_bytes(b"0" * 2_000_000)


def _write_torch(path: Path) -> None:
    import torch

    torch.save(torch.zeros(500_000), path)


def _write_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(500_000)}, path)


def test_a_file_is_hashed_once_for_as_long_as_nobody_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    hashed = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: hashed.append(1) or original(*given))
    first = file_digest(file)
    assert first == hashlib.sha256(b"one").hexdigest()
    assert (file_digest(file), len(hashed)) == (first, 1)
    for content in (b"two", b"six"):  # as long, and written at once
        before = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as one who wants to hide it would do
        assert file_digest(file) == hashlib.sha256(content).hexdigest()
    other = tmp_path / "other"
    other.write_bytes(b"ten")
    other.replace(file)
    assert file_digest(file) == hashlib.sha256(b"ten").hexdigest()


def test_a_repository_around_an_installed_accord_is_not_accord_s(tmp_path: Path) -> None:
    """Installed in an environment inside somebody's repository, accord records no commit, as it has none."""
    installed = tmp_path / ".venv" / "site-packages"
    shutil.copytree(ROOT / "accord", installed / "accord", ignore=shutil.ignore_patterns("__pycache__"))
    ours = {
        "GIT_AUTHOR_NAME": "x",
        "GIT_AUTHOR_EMAIL": "x",
        "GIT_COMMITTER_NAME": "x",
        "GIT_COMMITTER_EMAIL": "x",
    }
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "somebody's own work"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=os.environ | ours)
    code = "import json; from accord.run_record import code_version; print(json.dumps(code_version()))"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == {"commit": None, "dirty": None}
