"""A round is one controlling process; its training stages are started in several, by `accelerate launch`.

    accord round CONFIG compute.devices=2       # or: accord ppo CONFIG compute.devices=2

`Runs.begin` comes here with a stage that is not finished. The stage's own command is launched on the round's
configuration, followed, started again after a lost process, and ended with the round; then `begin` finds a finished
run. Where the user has started several processes by a launcher, nothing is launched.
"""

import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from accord import errors
from accord.compute.config import ComputeConfig
from accord.compute.launcher import NO_RENDEZVOUS
from accord.compute.machines import Launch, Machines
from accord.compute.worker import REASON, SECONDS_TO_END
from accord.errors import AccordError, UsageError
from accord.terminal import say

logger = logging.getLogger(__name__)

FOLDER = ".launch"
"""Below that of the runs: what the launched processes read."""
OTHER_PORTS = 5
"""How often another port is tried."""
SECONDS_TO_NOTICE = 3
"""After which a stage's processes have ended, too, where their launcher was killed."""


class Launcher:
    """Starts the training stages of one round; `Runs.launch` is its `start`."""

    def __init__(
        self, compute: ComputeConfig, settings: Mapping[str, Any], root: Path, stages: Sequence[str],
        free: Callable[[], None], machines: Machines | None = None,
    ) -> None:  # fmt: skip
        """Nothing starts yet.

        Args:
            compute: on what.
            settings: the round's configuration, as its file may have it.
            root: the folder of runs.
            stages: those that train.
            free: called before each start, to give back the memory that this process holds on devices.
            machines: the connection with the other machines, if there are any.
        """
        self.compute, self.settings, self.root, self.stages = compute, settings, root, stages
        self.free, self.machines = free, machines

    def start(self, stage: str) -> bool:
        """Do a stage's work in processes of its own, if it is one that trains; returns whether it is done now.

        Raises:
            AccordError: what a process of the stage said, or they were lost more often than `compute.restarts`.
        """
        if stage not in self.stages:
            return False
        self.free()
        folder = self.root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{stage}-{os.getpid()}"
        config, reason = folder / f"{name}.yaml", folder / f"{name}.reason.json"
        _write_private(config, yaml.safe_dump(dict(self.settings), sort_keys=False))
        arguments = [stage, "train"] if stage == "reward" else [stage]
        command = ["-m", "accord", "--runs", str(self.root), *arguments, str(config)]
        try:
            self.run(stage, command, reason)
        finally:
            for file in (config, reason, _accelerate_file(reason)):
                file.unlink(missing_ok=True)
        return True

    def run(self, stage: str, command: Sequence[str], reason: Path) -> None:
        """Run a program in all processes until it succeeds.

        Args:
            stage: what it is called.
            command: the script and its arguments, or -m, a module and its arguments.
            reason: a file for what a process says is wrong.

        Raises:
            AccordError: as `start`.
        """
        restarts = ports = 0
        logger.info("%s: starts in %s", stage, _in_words(self.compute))
        while True:
            reason.unlink(missing_ok=True)
            port = free_port()
            _write_private(_accelerate_file(reason), yaml.safe_dump(accelerate_config(self.compute, port)))
            launch = Launch(str(_accelerate_file(reason)), str(reason), list(command))
            if self.machines:
                self.machines.announce(launch)
            code = run_launch(self.compute, launch, 0)
            if self.machines:
                self.machines.announce(None)
            if code == 0:
                return
            error = _read_reason(reason)
            if error is None and code == NO_RENDEZVOUS and ports < OTHER_PORTS:
                ports += 1
                continue
            if error is not None and not isinstance(error, _WorkerLostError):
                raise error
            # Elsewhere a process may have been killed, which those here notice in whatever way.
            lost = error is not None or code > 128 or self.compute.machines > 1
            if code == 128 + signal.SIGINT:
                raise KeyboardInterrupt
            if not lost:
                raise AccordError(
                    f"{stage} failed in a process of its own, with exit code {code}; what it printed last says why"
                )
            how = f" (signal {code - 128})" if code > 128 else ""
            if restarts == self.compute.restarts:
                raise AccordError(
                    f"{stage}: a worker was lost{how}, after {restarts} restarts; run the same command again to "
                    "continue from the last checkpoint, with less memory for each pass if signal 9 came from the "
                    "system's lack of it"
                )
            restarts += 1
            logger.info(
                "%s: a worker was lost%s; starts again from its last checkpoint (%d of %d)",
                stage, how, restarts, self.compute.restarts,
            )  # fmt: skip


class _WorkerLostError(AccordError):
    """What a process says that noticed the loss of another one."""


def check_devices(compute: ComputeConfig) -> None:
    """Look at whether this machine has what the configuration asks of it; with one process, nothing is asked.

    Raises:
        UsageError: it has fewer devices, an engine is not installed, or nobody says which of several machines it is.
    """
    if compute.processes == 1:
        return
    import torch

    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    there = gpus or cores()
    if compute.devices > there:
        kind = "GPU" if gpus else "core"
        raise UsageError(
            f"compute.devices is {compute.devices}, and this machine has {there} {kind}{'s' if there > 1 else ''}; "
            f"set it to {there} or fewer"
        )
    if compute.sharding in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise UsageError(
            f"compute.sharding is {compute.sharding}, which DeepSpeed does, and it is not installed; run `pip install "
            "'accord[zero]'`, or set compute.sharding=fsdp2"
        )
    if compute.machines > 1:
        machine_rank(compute)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


MACHINE_VARIABLES = ("ACCORD_MACHINE", "SLURM_NODEID", "SKYPILOT_NODE_RANK")


def machine_rank(compute: ComputeConfig) -> int:
    """Which of several machines this is, from 0.

    Raises:
        UsageError: no variable says it, or it says a number that there is not.
    """
    if compute.machines == 1:
        return 0
    for name in MACHINE_VARIABLES:
        if (said := os.environ.get(name)) is not None:
            if said.isdigit() and int(said) < compute.machines:
                return int(said)
            raise UsageError(
                f"{name} is '{said}', and the {compute.machines} machines are 0 to {compute.machines - 1}"
            )
    raise UsageError(
        f"compute.machines is {compute.machines}, and nothing says which of them this is; set "
        f"{MACHINE_VARIABLES[0]}=0 on the first, 1 on the next, and so on"
    )


@contextlib.contextmanager
def machines_of(compute: ComputeConfig) -> Iterator[Machines | None]:
    """On the first machine: the connection with the others, who are told when it ends; None where there are none.

    Raises:
        UsageError: the port is taken.
    """
    if compute.machines == 1:
        yield None
        return
    check_devices(compute)
    assert compute.rendezvous
    machines = Machines(compute.rendezvous, is_first=True)
    code = 1
    try:
        yield machines
        code = 0
    except AccordError as error:
        code = error.exit_code
        raise
    finally:
        machines.end(code)


def serve(compute: ComputeConfig) -> int:
    """On any other machine: take part in what the first one launches, and return with which exit code it ended.

    Raises:
        AccordError: the first machine cannot be reached any more.
    """
    check_devices(compute)
    assert compute.rendezvous
    logger.info(
        "waits for the first machine at %s, and takes part in its training stages", compute.rendezvous
    )
    machines = Machines(compute.rendezvous, is_first=False)
    return machines.follow(
        lambda launch, is_over: run_launch(compute, launch, machine_rank(compute), is_over)
    )


def accelerate_config(compute: ComputeConfig, port: int) -> dict[str, Any]:
    """What `accelerate launch --config_file` reads, so that no other configuration on the machine counts."""
    engine: dict[str, Any] = {"distributed_type": "MULTI_GPU"}  # its word for several processes, also on CPU
    if compute.sharding == "fsdp2":
        engine = {
            "distributed_type": "FSDP",
            "fsdp_config": {
                "fsdp_version": 2,
                "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "fsdp_offload_params": compute.offload,
                "fsdp_reshard_after_forward": True,
                "fsdp_state_dict_type": "SHARDED_STATE_DICT",
                "fsdp_cpu_ram_efficient_loading": False,  # else transformers leaves weights out, also frozen models'
            },
        }
    elif compute.sharding != "none":
        device = "cpu" if compute.offload else "none"
        engine = {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {
                "zero_stage": 2 if compute.sharding == "zero2" else 3,
                "offload_optimizer_device": device,
                "offload_param_device": device if compute.sharding == "zero3" else "none",
                "zero3_init_flag": False,
                "deepspeed_multinode_launcher": "standard",
            },
        }
    return {
        "compute_environment": "LOCAL_MACHINE",
        **engine,
        "num_processes": compute.processes,
        "num_machines": compute.machines,
        "main_process_ip": compute.rendezvous.split(":")[0] if compute.rendezvous else "127.0.0.1",
        "main_process_port": port,
        "rdzv_backend": "static",
        "same_network": True,
        "mixed_precision": "no",  # precision is the stages' own setting
        "gpu_ids": "all",
        "use_cpu": False,
        "debug": False,
    }


def run_launch(
    compute: ComputeConfig, launch: Launch, machine: int, is_over: Callable[[], bool] = lambda: False
) -> int:
    """Start a launch's processes on this machine, print what they print, and return the exit code of `launcher`.

    Args:
        compute: on what.
        launch: what to start.
        machine: which one this is.
        is_over: asked every second; the processes are ended once it is true.
    """
    environment = {**os.environ, REASON: launch.reason, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // compute.devices)))
    process = subprocess.Popen(
        [
            sys.executable, "-m", "accord.compute.launcher", str(os.getpid()), "--config_file", launch.config,
            "--machine_rank", str(machine), *launch.command,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    reader = threading.Thread(target=_pass_through, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(1)
                if code < 0:
                    time.sleep(SECONDS_TO_NOTICE)
                return code if code >= 0 else 128 - code
            if is_over():
                return 128 + signal.SIGTERM
    finally:
        if process.poll() is None:
            process.terminate()  # it ends the processes of the stage first
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()  # they notice, and follow
                process.wait()
        reader.join(5)


def _pass_through(output: IO[str]) -> None:
    for line in output:
        say(line, err=True, nl=False)


def _accelerate_file(reason: Path) -> Path:
    return Path(str(reason).replace(".reason.json", ".accelerate.yaml"))


def _read_reason(path: Path) -> AccordError | None:
    if not path.exists():
        return None
    reason = json.loads(path.read_text(encoding="utf-8"))
    if reason["kind"] == "ProcessLostError":
        return _WorkerLostError(reason["message"])
    kind = getattr(errors, reason["kind"], AccordError)
    return kind(reason["message"])  # type: ignore[no-any-return]


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _in_words(compute: ComputeConfig) -> str:
    words = f"{compute.processes} processes"
    if compute.machines > 1:
        words += f" on {compute.machines} machines"
    return words + (f", sharded by {compute.sharding}" if compute.sharding != "none" else "")
