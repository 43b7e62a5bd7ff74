"""Imports point one way: accord's core <- sft <- feedback <- reward <- rl <- eval <- accord.round, accord.cli."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("sft", "feedback", "reward", "rl", "eval")
TOP = ("accord.round", "accord.cli")
CORE, ABOVE_ALL = 0, len(STAGES) + 1


def layer(module: str) -> int | None:
    """0 for the core, 1 to 5 for the stages in order, 6 for round and cli, None for other people's modules."""
    package = module.split(".")[0]
    if package == "accord":
        return ABOVE_ALL if module.startswith(TOP) else CORE
    return STAGES.index(package) + 1 if package in STAGES else None


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    """All modules that a source text imports, wherever in it, those for type checking only left out."""
    tree = ast.parse(source)
    for_types = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    ]
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    if module in ("accord.__main__", "accord.bootstrap"):
        return
    assert wrong_arrows(path.read_text(), module, is_package) == []


def test_what_runs_inside_argilla_imports_nothing_of_ours() -> None:
    for path in INSIDE_ARGILLA.rglob("*.py"):
        assert [
            name for name in imports_of(path.read_text(), "accord_argilla.x") if layer(name) is not None
        ] == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("sft.train", "from reward.score import score", ["reward.score", "reward.score.score"]),
        ("accord.models", "def f():\n    import sft.train", ["sft.train"]),
        ("accord.models", "from accord import cli", ["accord.cli"]),
        ("accord.models", "from . import round", ["accord.round"]),
        ("eval.gate", "from accord.round import run_round", ["accord.round", "accord.round.run_round"]),
        ("rl.dpo", "from reward.data import split_by_prompt\nimport torch, accord.chat", []),
        ("accord.cli", "import eval.gate, rl.dpo", []),
        ("accord.runs", "if TYPE_CHECKING:\n    from sft.config import SFTConfig", []),
    ],
)
def test_the_check_sees_wrong_arrows(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_arrows(source, module) == wrong
