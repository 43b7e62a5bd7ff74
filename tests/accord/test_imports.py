"""Imports point one way: accord's core <- sft <- feedback <- reward <- rl <- eval <- accord.preflight, round, cli."""

import ast
from pathlib import Path

import pytest

import accord

ROOT = Path(__file__).parents[2]
STAGES = ("sft", "feedback", "reward", "rl", "eval")
TOP = ("accord.round", "accord.preflight", "accord.cli")
CORE, ABOVE_ALL = 0, len(STAGES) + 1
EXPORTS = {
    f"accord.{name}" for name in accord.__all__
}  # from all floors, for users; no module of ours takes them


def layer(module: str) -> int | None:
    """0 for the core, 1 to 5 for the stages in order, 6 for what is above them, None for other people's modules."""
    package = module.split(".")[0]
    if package == "accord":
        return ABOVE_ALL if module.startswith(TOP) or module in EXPORTS else CORE
    return STAGES.index(package) + 1 if package in STAGES else None


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    """All modules that a source text imports, wherever in it, those for type checking only among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: None if is_package else -1]
            parts = parts[: len(parts) - node.level + 1]
            base = (
                ".".join([*parts, *([node.module] if node.module else [])])
                if node.level
                else str(node.module)
            )
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def wrong_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    mine = layer(module)
    assert mine is not None
    return sorted(
        name
        for name in imports_of(source, module, is_package)
        if (theirs := layer(name)) is not None and theirs > mine
    )


# Runs in Argilla's own environment and imports nothing of accord: checked below.
INSIDE_ARGILLA = ROOT / "feedback" / "argilla" / "server" / "inside"
MODULES = [
    path
    for package in ("accord", *STAGES)
    for path in sorted((ROOT / package).rglob("*.py"))
    if INSIDE_ARGILLA not in path.parents
]


def test_all_modules_are_looked_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in MODULES}
    assert {
        "accord/cli/main.py",
        "accord/training.py",
        "sft/train.py",
        "reward/score.py",
        "rl/dpo.py",
    } <= names
    assert any(name.startswith("eval/") for name in names)
    assert any(name.startswith("feedback/") for name in names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    if module in ("accord", "accord.__main__", "accord.bootstrap"):  # the first exports what all floors have
        return
    assert wrong_arrows(path.read_text(), module, path.name == "__init__.py") == []


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The sets of names that reach one another, each sorted; none, where the arrows can be followed to an end."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = list(arrows[start])
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += arrows.get(name, ())
        return found

    reach = {name: reached(name) for name in arrows}
    found = {
        tuple(sorted(other for other in reach[name] if name in reach.get(other, ())))
        for name in arrows
        if name in reach[name]
    }
    return [list(circle) for circle in sorted(found)]


def arrows_between(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which of these modules imports which other one; a package counts only where no module of it is meant.

    Args:
        sources: by module, its text and whether it is a package.
    """
    arrows: dict[str, set[str]] = {}
    for module, (source, is_package) in sources.items():
        names = {name for name in imports_of(source, module, is_package) if name in sources}
        narrower = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
        arrows[module] = names - narrower - {module}
    return arrows


def between_rooms(arrows: dict[str, set[str]], folder: str) -> dict[str, set[str]]:
    """The arrows as they go between what lies directly in a folder: its modules, and its folders as a whole."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[: folder.count(".") + 2])

    rooms: dict[str, set[str]] = {}
    for module, theirs in arrows.items():
        if module.startswith(f"{folder}."):
            inside = {room(other) for other in theirs if other.startswith(f"{folder}.")}
            rooms.setdefault(room(module), set()).update(inside - {room(module)})
    return rooms


ARROWS = arrows_between({module_of(path): (path.read_text(), path.name == "__init__.py") for path in MODULES})
FOLDERS = sorted({module.rpartition(".")[0] for module in ARROWS if "." in module})


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circles(ARROWS) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_rooms_of_a_folder_import_one_another_in_a_circle(folder: str) -> None:
    rooms = between_rooms(ARROWS, folder)
    if folder == "accord":  # the roof stands in this folder, over the stages
        rooms = {name: theirs for name, theirs in rooms.items() if not name.startswith(TOP)}
    assert circles(rooms) == []


@pytest.mark.parametrize("folder", ["eval", "feedback"])
def test_a_house_has_few_doors(folder: str) -> None:
    modules = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 6


def test_the_check_sees_circles() -> None:
    sources = {
        "eval.a": ("from eval.b import x", False),
        "eval.b": ("if TYPE_CHECKING:\n    from eval.c import x", False),
        "eval.c": ("def f():\n    import eval.a", False),
        "eval.d": ("import eval.a", False),
    }
    assert circles(arrows_between(sources)) == [["eval.a", "eval.b", "eval.c"]]
    rooms = {"eval.p.a": {"eval.q.b"}, "eval.q.b": set(), "eval.q.c": {"eval.p.d"}, "eval.p.d": set()}
    assert circles(rooms) == []
    assert circles(between_rooms(rooms, "eval")) == [["eval.p", "eval.q"]]


def test_what_runs_inside_argilla_imports_nothing_of_ours() -> None:
    for path in INSIDE_ARGILLA.rglob("*.py"):
        assert [
            name for name in imports_of(path.read_text(), "accord_argilla.x") if layer(name) is not None
        ] == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("sft.train", "from reward.score import score", ["reward.score", "reward.score.score"]),
        ("accord.errors", "def f():\n    import sft.train", ["sft.train"]),
        ("accord.errors", "from accord import cli", ["accord.cli"]),
        ("accord.errors", "from . import round", ["accord.round"]),
        ("rl.dpo", "from accord import bundled, Runs", ["accord.Runs"]),
        (
            "eval.verdict.gate",
            "from accord.round import run_round",
            ["accord.round", "accord.round.run_round"],
        ),
        ("rl.dpo", "from reward.data import split_by_prompt\nimport torch, accord.errors", []),
        ("accord.cli.main", "import eval.verdict.gate, rl.dpo", []),
        (
            "accord.runs",
            "if TYPE_CHECKING:\n    from sft.config import SFTConfig",
            ["sft.config", "sft.config.SFTConfig"],
        ),
    ],
)
def test_the_check_sees_wrong_arrows(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_arrows(source, module) == wrong
