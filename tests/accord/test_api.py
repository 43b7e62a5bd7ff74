"""`import accord`: what it offers, what it costs, and that a wheel holds all of it."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import accord

ROOT = Path(__file__).parents[2]
PACKAGES = ("accord", "sft", "feedback", "reward", "rl", "eval")


def python(code: str, folder: Path = ROOT, packages: Path = ROOT) -> str:
    """What a fresh interpreter prints that finds accord in `packages`."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_quick_and_loads_nothing_heavy() -> None:
    """The best of three: what is measured is the import, not who else uses the machine."""
    code = """
import sys, time
start = time.perf_counter()
import accord
seconds = time.perf_counter() - start
dir(accord)
heavy = [name for name in ("torch", "transformers", "datasets", "numpy", "pydantic") if name in sys.modules]
print(seconds, *heavy)
"""
    answers = [python(code).split() for _ in range(3)]
    assert [heavy for _, *heavy in answers] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in answers) < 0.3


def test_settings_and_runs_need_no_torch() -> None:
    code = """
import sys, accord
accord.SFTConfig(epochs=2), accord.PPOConfig(updates=3), accord.Runs(), accord.Model, accord.RoundConfig
print("torch" in sys.modules)
"""
    assert python(code) == "False\n"


def test_every_public_name_is_there_and_type_checkers_know_the_same_ones() -> None:
    assert [name for name in accord.__all__ if not hasattr(accord, name)] == []
    assert set(accord.__all__) <= set(dir(accord))
    tree = ast.parse(Path(accord.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        (alias.name, alias.asname): str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: module for (name, _), module in typed.items()} == accord._MODULES
    assert all(name == public for name, public in typed), "an export is an import `as` itself"
    with pytest.raises(AttributeError, match="module 'accord' has no attribute 'fine_tun'"):
        accord.fine_tun  # type: ignore[attr-defined]  # noqa: B018


# --- the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel of this checkout installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob(f"accord-{accord.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    files = {
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(package, "py.typed") for package in PACKAGES} <= files
    assert {path.suffix for path in files} >= {".jinja", ".css", ".js", ".jsonl", ".md"}
    assert [str(file) for file in sorted(files) if not (installed / file).is_file()] == []
    assert (installed / "accord/configs/demo.yaml").is_file()


def test_an_installed_wheel_imports_and_renders(installed: Path, tmp_path: Path) -> None:
    code = """
import accord
from accord.bundled import config_path, data_path
from accord.config import Config
from accord.page.render import render, run_page
from eval.suites.suite import find_suite, read_items, shipped

for name in accord.__all__:
    getattr(accord, name)
runs = accord.Runs("runs")
with runs.begin("sft", Config(), {}) as run:
    run.finish({"loss": 1.5})
page = run_page(run, runs)
assert run.id in page and "<style>" in page
config = accord.load_config(config_path("demo.yaml"), accord.RoundConfig)
assert len(accord.read_jsonl(data_path(config.eval.prompts), accord.Prompt)) == 80
print(accord.__file__, sum(len(read_items(find_suite(name))) for name in shipped()) > 1000)
"""
    assert python(code, tmp_path, installed) == f"{installed}/accord/__init__.py True\n"


def test_every_page_of_an_installed_wheel_finds_its_template(installed: Path, tmp_path: Path) -> None:
    """Jinja reads a template, and those that it extends and imports, before it asks for the values in it."""
    code = """
from pathlib import Path
import accord, jinja2
from accord.page.render import render

for template in sorted(Path(accord.__file__).parents[1].glob("*/page/report.html.jinja")):
    try:
        render(template.parent, template.name, {})
    except jinja2.UndefinedError as error:
        print(template.parent.parent.name)
"""
    assert python(code, tmp_path, installed).split() == ["eval", "feedback", "reward", "sft"]
