"""A training stage in processes of its own: started, followed, started again, and ended with the round."""

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from accord.cli.main import main
from accord.compute import launch
from accord.compute.config import ComputeConfig
from accord.compute.launch import Launcher, check_devices, machine_rank
from accord.compute.machines import Launch, Machines
from accord.errors import AccordError, DataError, UsageError
from accord.runs import Runs

ROOT = Path(__file__).parents[2]
TWO = ComputeConfig(devices=2)
WORKER = """
import json, os, pathlib, signal, sys, time
rank, folder = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
tries = len(list(folder.glob(f"try-{rank}-*")))
(folder / f"try-{rank}-{tries}").touch()
(folder / f"pid-{rank}").write_text(str(os.getpid()))
print(f"rank {rank} of {os.environ['WORLD_SIZE']}", os.environ.get("ACCELERATE_USE_FSDP"), flush=True)
"""
"""What each process of the stub does first."""
DIES_ONCE = (
    WORKER
    + """
if rank == 1 and not tries:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0 if tries else 30)
"""
)
REFUSES = (
    WORKER
    + """
from accord.compute import worker
from accord.compute.machines import Launch, Machines
from accord.errors import DataError
if rank == 0:
    worker.tell(DataError("rows.jsonl, line 3: is no row"))
    sys.exit(1)
time.sleep(60)
"""
)
FAILS = (
    WORKER
    + """
if rank == 0:
    sys.exit(3)
time.sleep(60)
"""
)
WAITS = (
    WORKER
    + """
sys.path.insert(0, ".")
from accord.compute import worker
worker.end_with_launcher()
time.sleep(300)
"""
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine's number from the outside."""
    for name in launch.MACHINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def stub(folder: Path, program: str) -> list[str]:
    (folder / "stub.py").write_text(program)
    return [str(folder / "stub.py"), str(folder)]


def launcher(folder: Path, compute: ComputeConfig = TWO) -> Launcher:
    return Launcher(compute, {}, folder, ("sft",), free=lambda: None)


def wait_for(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)


def test_a_stage_starts_again_after_a_killed_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "accord")
    sharded = ComputeConfig(devices=2, sharding="fsdp2")
    launcher(tmp_path, sharded).run("sft", stub(tmp_path, DIES_ONCE), tmp_path / "sft.reason.json")
    assert sorted(path.name for path in tmp_path.glob("try-*")) == [
        "try-0-0",
        "try-0-1",
        "try-1-0",
        "try-1-1",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "sft: starts in 2 processes, sharded by fsdp2",
        "sft: a worker was lost (signal 9); starts again from its last checkpoint (1 of 3)",
    ]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sorted(printed.err.splitlines()) == [*["rank 0 of 2 true"] * 2, *["rank 1 of 2 true"] * 2]


def test_it_starts_again_so_often_and_no_more(tmp_path: Path) -> None:
    compute = ComputeConfig(devices=2, restarts=0)
    with pytest.raises(
        AccordError, match=r"^sft: a worker was lost \(signal 9\), after 0 restarts; run the same"
    ):
        launcher(tmp_path, compute).run("sft", stub(tmp_path, DIES_ONCE), tmp_path / "sft.reason.json")


def test_what_a_process_finds_wrong_is_the_rounds_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^rows.jsonl, line 3: is no row$"):
        launcher(tmp_path).run("sft", stub(tmp_path, REFUSES), tmp_path / "sft.reason.json")
    assert len(list(tmp_path.glob("try-0-*"))) == 1, "it started again in vain"


def test_a_failure_that_nobody_explains_ends_the_round(tmp_path: Path) -> None:
    with pytest.raises(AccordError, match=r"^sft failed in a process of its own, with exit code 3; what it"):
        launcher(tmp_path).run("sft", stub(tmp_path, FAILS), tmp_path / "sft.reason.json")
    assert len(list(tmp_path.glob("try-0-*"))) == 1, "it started again in vain"


ROUND = """
import pathlib, sys
from accord.compute.config import ComputeConfig
from accord.compute.launch import Launcher
folder = pathlib.Path(sys.argv[1])
Launcher(ComputeConfig(devices=2), {}, folder, ("sft",), lambda: None).run(
    "sft", [str(folder / "stub.py"), str(folder)], folder / "sft.reason.json")
"""


@contextlib.contextmanager
def controlling(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A process that launched two, which wait; with all that must end."""
    stub(folder, WAITS)
    process = subprocess.Popen([sys.executable, "-c", ROUND, str(folder)], cwd=ROOT)
    try:
        wait_for(lambda: all((folder / f"pid-{rank}").exists() for rank in (0, 1)))
        time.sleep(1)  # they have begun to watch
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_round(tmp_path: Path, how: signal.Signals) -> None:
    with controlling(tmp_path) as (process, others):
        assert {int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)} < {
            each.pid for each in others
        }
        process.send_signal(how)
        process.wait(60)
        _, alive = psutil.wait_procs(others, timeout=30)
        assert alive == []


def test_processes_end_with_their_launcher(tmp_path: Path) -> None:
    with controlling(tmp_path) as (process, _):
        (launched,) = psutil.Process(process.pid).children()
        workers = launched.children()
        assert len(workers) == 2
        launched.kill()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []


def test_another_port_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([launch.NO_RENDEZVOUS, launch.NO_RENDEZVOUS, 0])
    ports = []

    def run_launch(compute: ComputeConfig, started: Any, machine: int) -> int:
        ports.append(yaml.safe_load(Path(started.config).read_text())["main_process_port"])
        return next(codes)

    monkeypatch.setattr(launch, "run_launch", run_launch)
    launcher(tmp_path).run("sft", [], tmp_path / "sft.reason.json")
    assert len(ports) == 3


def say(reason: str, kind: str) -> None:
    Path(reason).write_text(json.dumps({"kind": kind, "message": "what a process said"}))


def test_only_a_lost_process_is_a_reason_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of another machine was killed, say: here, one only notices that."""
    started: list[int] = []

    def run_launch(compute: ComputeConfig, each: Launch, machine: int) -> int:
        started.append(1)
        if len(started) == 1:
            say(each.reason, "ProcessLostError")
        return 1 if len(started) < 3 else 0

    monkeypatch.setattr(launch, "run_launch", run_launch)
    with pytest.raises(AccordError, match=r"^sft failed in a process of its own, with exit code 1; what it"):
        launcher(tmp_path).run("sft", [], tmp_path / "sft.reason.json")
    assert len(started) == 2  # the second time, nobody said anything of a lost process


def test_a_stage_that_did_other_work_is_no_finished_run(runs: Runs) -> None:
    runs.launch = lambda stage: stage == "sft"
    with pytest.raises(AccordError, match="started for sft did other work"), runs.begin("sft", TWO, {}):
        pass
    with runs.begin("eval", TWO, {}) as run:
        run.finish({})


def test_only_training_stages_are_launched_by_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run_launch(compute: ComputeConfig, started: Any, machine: int) -> int:
        file = Path(started.command[-1])
        seen.append((started.command[:-1], yaml.safe_load(file.read_text()), file.stat().st_mode & 0o777))
        return 0

    freed: list[int] = []
    monkeypatch.setattr(launch, "run_launch", run_launch)
    started = Launcher(TWO, {"model": "m"}, tmp_path, ("sft", "reward"), free=lambda: freed.append(1))
    assert [started.start(stage) for stage in ("base", "sft", "eval", "reward")] == [False, True, False, True]
    common = ["-m", "accord", "--runs", str(tmp_path)]
    assert seen == [
        ([*common, "sft"], {"model": "m"}, 0o600), ([*common, "reward", "train"], {"model": "m"}, 0o600)
    ]  # fmt: skip
    assert len(freed) == 2
    assert list((tmp_path / launch.FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"devices": 2, "offload": True}, "offload: needs sharding"),
        ({"sharding": "fsdp2"}, "sharding: fsdp2 is over two devices or more"),
        ({"machines": 2}, "machines: needs rendezvous"),
        ({"machines": 2, "rendezvous": "http://node:1"}, "should match pattern"),
        ({"devices": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        ComputeConfig.model_validate(settings)


def test_more_devices_than_there_are() -> None:
    there = launch.cores()
    with pytest.raises(
        UsageError, match=f"compute.devices is {there + 1}, and this machine has {there} core"
    ):
        check_devices(ComputeConfig(devices=there + 1))


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"run `pip install 'accord\[zero\]'`, or set compute\.sharding=fsdp2"
    ):
        check_devices(ComputeConfig(devices=2, sharding="zero3"))


def test_which_machine_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    several = ComputeConfig(machines=2, rendezvous="a:1")
    with pytest.raises(UsageError, match="set ACCORD_MACHINE=0 on the first"):
        machine_rank(several)
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert (machine_rank(several), machine_rank(ComputeConfig())) == (1, 0)
    monkeypatch.setenv("ACCORD_MACHINE", "2")
    with pytest.raises(UsageError, match="ACCORD_MACHINE is '2', and the 2 machines are 0 to 1"):
        machine_rank(several)


def test_machines_start_what_the_first_one_launches_and_end_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        rendezvous = f"127.0.0.1:{server.getsockname()[1]}"
    first = Machines(rendezvous, is_first=True)
    first.announce(Launch("0.yaml", "reason", ["ppo"]))  # before the other one is there
    started: list[tuple[str, bool]] = []

    def run(launch: Launch, is_over: Any) -> int:
        started.append((launch.config, is_over()))
        wait_for(is_over)
        return 1

    with ThreadPoolExecutor() as pool:
        other = pool.submit(lambda: Machines(rendezvous, is_first=False).follow(run))
        wait_for(lambda: len(started) == 1)
        first.announce(Launch("1.yaml", "reason", ["ppo"]))  # again, after a lost process
        wait_for(lambda: len(started) == 2)
        first.announce(None)
        first.end(75)
        assert other.result(30) == 75
    assert started == [("0.yaml", False), ("1.yaml", False)]


def test_a_rendezvous_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_MACHINE", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        compute = ComputeConfig(machines=2, rendezvous=taken)
        with pytest.raises(UsageError, match=r"compute\.rendezvous: port"), launch.machines_of(compute):
            pass


SLURM = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = show ] && printf "node-1\\nnode-2\\n"; exit 0',
    "sbatch": 'echo "sbatch $1" >> "$LOG"',
    "srun": 'echo "srun $*" >> "$LOG"; [ "$CODE" = sleep ] && exec sleep 60; exit "$CODE"',
}


@pytest.fixture
def batch_script(tmp_path: Path) -> Path:
    """Of two nodes, whose programs are Slurm's by name."""
    shutil.copy(ROOT / "configs/tiny-ppo.yaml", tmp_path / "my round.yaml")
    arguments = [
        "--runs", str(tmp_path / "runs"), "launch", str(tmp_path / "my round.yaml"), "compute.devices=8",
        "compute.machines=2", "rl.seed=1", "--print", "slurm",
    ]  # fmt: skip
    script = CliRunner().invoke(main, arguments)
    assert script.exit_code == 0, script.output
    (tmp_path / "job.sh").write_text(script.output)
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    return tmp_path / "job.sh"


def run_job(script: Path, code: str, and_signal: bool = False) -> tuple[int, list[str], str]:
    """The script's exit code, what it called, and what it printed."""
    log = script.parent / "log"
    log.unlink(missing_ok=True)
    environment = {
        **os.environ, "PATH": f"{script.parent / 'bin'}:{os.environ['PATH']}", "LOG": str(log), "CODE": code,
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[1-2]",
    }  # fmt: skip
    job = subprocess.Popen(["bash", str(script)], env=environment, text=True, stdout=subprocess.PIPE)
    if and_signal:
        wait_for(lambda: log.exists() and "srun" in log.read_text())
        job.send_signal(signal.SIGUSR1)
    printed, _ = job.communicate(timeout=60)
    return job.returncode, log.read_text().splitlines(), printed


def test_the_batch_script_asks_for_what_is_configured(batch_script: Path) -> None:
    subprocess.run(["bash", "-n", str(batch_script)], check=True)
    asked = [line.split()[1] for line in batch_script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue"} <= set(asked)
    code, (_, srun), _ = run_job(batch_script, "0")
    assert code == 0
    assert srun.endswith(
        f" -m accord --runs {batch_script.parent / 'runs'} round {batch_script.parent / 'my round.yaml'} "
        "compute.devices=8 compute.machines=2 rl.seed=1 compute.machines=2 compute.rendezvous=node-1:29400"
    )


@pytest.mark.parametrize("code", ["1", "10", "11"])
def test_the_batch_script_ends_as_the_round(batch_script: Path, code: str) -> None:
    assert run_job(batch_script, code)[0] == int(code)


def test_the_batch_script_comes_back_for_annotators(batch_script: Path) -> None:
    code, called, printed = run_job(batch_script, "75")
    assert (code, called[-1]) == (0, "sbatch --begin=now+60minutes")
    assert "annotators are at work" in printed


def test_the_batch_script_goes_back_into_the_queue_when_preempted(batch_script: Path) -> None:
    code, called, _ = run_job(batch_script, "sleep", and_signal=True)
    assert (code, called[-1]) == (0, "scontrol requeue 7")


def test_the_task_for_skypilot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are those of SkyPilot's own schema, where that is installed."""
    monkeypatch.chdir(ROOT)
    arguments = ["launch", "configs/tiny-ppo.yaml", "compute.devices=8", "compute.machines=2"]
    shown = CliRunner().invoke(main, [*arguments, "--print", "skypilot"])
    assert shown.exit_code == 0, shown.output
    task = yaml.safe_load(shown.output)
    assert (task["num_nodes"], task["resources"]["accelerators"], task["resources"]["use_spot"]) == (
        2,
        "H100:8",
        True,
    )
    assert task["volumes"] == {"/runs": "accord-runs"}
    subprocess.run(["bash", "-n", "-c", task["run"]], check=True)
    assert "round configs/tiny-ppo.yaml compute.devices=8 compute.machines=2 \\\n" in task["run"]
    if importlib.util.find_spec("sky"):
        import sky  # type: ignore[import-not-found]

        sky.Task.from_yaml_config(task)


def test_the_plan_of_a_configuration(tiny_model: Any) -> None:
    arguments = ["launch", str(ROOT / "configs/tiny-ppo.yaml"), f"model={tiny_model.folder}", "--plan"]
    shown = CliRunner().invoke(main, [*arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.output)
    assert list(plan["stages"]) == ["sft", "reward", "ppo"]
    sharded = CliRunner().invoke(main, [*arguments, "compute.devices=2", "compute.sharding=fsdp2", "--json"])
    halved = json.loads(sharded.output)["stages"]["sft"]["weights"]
    assert halved == pytest.approx(plan["stages"]["sft"]["weights"] / 2, abs=1)
    table = CliRunner().invoke(main, arguments).output
    assert "on 1 device, sharding: none" in table and "activations" in table
    refused = CliRunner().invoke(main, arguments[:-1])
    assert refused.exit_code == 2 and "say one of --print slurm" in refused.output
