import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from processor_time import processor_seconds_of_children

from accord import __version__
from accord.cli.main import main
from accord.config import Config
from accord.runs import Run, Runs

ROOT = Path(__file__).parents[2]
ACCORD = str(Path(sys.executable).with_name("accord"))
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "vllm", "argilla", "matplotlib", "scipy")


def accord(*arguments: str | Path, runs: Path | None = None) -> Result:
    options = ["--runs", str(runs)] if runs else []
    return CliRunner().invoke(main, [*options, *map(str, arguments)])


def test_help_is_there_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = processor_seconds_of_children()
        done = subprocess.run([ACCORD, "--help"], stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == 0
        seconds.append(processor_seconds_of_children() - start)
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", ACCORD, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage:")
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported  # the list is a list of modules
    assert imported.isdisjoint(HEAVY)


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


COMMANDS = list(commands(main))


def test_the_commands_are_those_of_the_design() -> None:
    names = {" ".join(path) for path, _ in COMMANDS}
    assert {
        "doctor", "demo", "round", "sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo", "best_of_n", "eval",
        "feedback serve", "feedback users", "feedback push", "feedback status", "feedback pull", "feedback agreement",
        "gate", "promote",
        "keys show", "keys trust", "runs list", "runs show", "runs lineage", "runs verify", "report",
    } <= names  # fmt: skip


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=["-".join(path) or "accord" for path, _ in COMMANDS]
)
def test_every_command_has_help(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    assert command.help.strip().splitlines()[0].rstrip().endswith((".", ":", "judge.", ",")), command.help
    result = accord(*path, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and "--json" not in parameter.opts:
            assert parameter.help, (path, parameter.name)


READ_COMMANDS = [
    "runs list",
    "runs show",
    "runs lineage",
    "runs verify",
    "feedback status",
    "feedback agreement",
    "keys show",
    "doctor",
]


def test_every_read_command_has_json() -> None:
    by_name = {" ".join(path): command for path, command in COMMANDS}
    for name in READ_COMMANDS:
        assert any("--json" in parameter.opts for parameter in by_name[name].params), name


def test_version() -> None:
    assert __version__ in accord("--version").output


# --- runs


@pytest.fixture
def made(runs: Runs) -> list[Run]:
    """A policy and a reward model made from it."""
    found: list[Run] = []
    for stage in ("sft", "reward"):
        with runs.begin(stage, Config(), {"base": found[0]} if found else {}) as run:
            (run.path / "model").mkdir()
            (run.path / "model" / "weights").write_text(stage)
            run.finish({"loss": 0.25}, {"too_long": 1})
        found.append(run)
    return found


def test_runs_list_show_lineage_verify_as_json(runs: Runs, made: list[Run]) -> None:
    sft, reward = made
    listed = json.loads(accord("runs", "list", "--json", runs=runs.root).output)
    assert {record["id"] for record in listed} == {sft.id, reward.id}
    shown = json.loads(accord("runs", "show", "--json", reward.id, runs=runs.root).output)
    assert shown["record"]["parents"] == {"base": sft.id}
    assert shown["metrics"] == {"loss": 0.25}
    lineage = json.loads(accord("runs", "lineage", "--json", reward.id[:-2], runs=runs.root).output)
    assert [record["id"] for record in lineage] == [sft.id, reward.id]
    verified = json.loads(accord("runs", "verify", "--json", runs=runs.root).output)
    assert set(verified["checked"]) == {sft.id, reward.id}
    assert verified["problems"] == {}


def test_the_same_as_text(runs: Runs, made: list[Run]) -> None:
    sft, reward = made
    listed = accord("runs", "list", runs=runs.root)
    assert listed.exit_code == 0
    assert [line.split()[:2] for line in listed.output.splitlines()] == [
        [run.id, "done"] for run in sorted(made, key=lambda run: (run.record.started_at, run.id))
    ]
    shown = accord("runs", "show", reward.id, runs=runs.root).output
    for text in (f"base: {sft.id}", "loss: 0.25", "too_long: 1", "model/weights: "):
        assert text in shown
    assert accord("runs", "lineage", reward.id, runs=runs.root).output.splitlines()[0] == sft.id
    assert accord("runs", "verify", runs=runs.root).output.count(" ok\n") == 2


def test_verify_names_what_was_tampered_with(runs: Runs, made: list[Run]) -> None:
    sft, reward = made
    (sft.path / "model" / "weights").write_text("others")
    for arguments in ((), (reward.id,)):  # all runs, and the ancestors of one
        result = accord("runs", "verify", *arguments, runs=runs.root)
        assert result.exit_code == 1
        assert "TAMPERED" in next(line for line in result.output.splitlines() if line.startswith(sft.id))
        assert "model/weights was changed after it finished" in result.stderr
    result = accord("runs", "verify", "--json", runs=runs.root)
    assert result.exit_code == 1
    assert list(json.loads(result.stdout)["problems"]) == [sft.id]


def test_an_empty_folder_of_runs(tmp_path: Path) -> None:
    result = accord("runs", "list", runs=tmp_path / "none")
    assert result.exit_code == 0
    assert "no runs yet" in result.output
    assert json.loads(accord("runs", "list", "--json", runs=tmp_path / "none").output) == []
    assert not (tmp_path / "none").exists()


# --- errors


def one_line(result: Result, exit_code: int) -> str:
    """The error that a command ended with, checked to be one line without a traceback."""
    assert result.exit_code == exit_code, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), lines
    assert "Traceback" not in result.output
    return lines[-1]


def demo_config() -> Path:
    return ROOT / "configs" / "demo.yaml"


def test_usage_errors_exit_with_2(runs: Runs, made: list[Run], tmp_path: Path) -> None:
    for command in ("round", "sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo", "best_of_n", "eval"):
        error = one_line(accord(command, demo_config(), "sft.learning_rte=1", runs=runs.root), 2)
        assert "unknown key 'sft.learning_rte'; did you mean 'learning_rate'?" in error
    error = one_line(accord("sft", demo_config(), "sft.trainer={weight_dcay: 1}", runs=runs.root), 2)
    assert "sft.trainer.weight_dcay" in error
    error = one_line(accord("round", tmp_path / "gone.yaml", runs=runs.root), 2)
    assert "gone.yaml: cannot be read" in error
    for command in ("dpo", "rloo", "grpo"):
        error = one_line(accord(command, demo_config(), runs=runs.root), 2)
        assert "says rl.algorithm: ppo; run `accord ppo`" in error
    online = "rl={algorithm: grpo, prompts: bundled:demo/prompts.train.jsonl, trainer: {scale_reward: none}}"
    error = one_line(accord("grpo", demo_config(), online, runs=runs.root), 2)
    assert "rl.trainer.scale_reward: GRPOConfig has no such argument; did you mean 'scale_rewards'?" in error
    error = one_line(accord("sft", demo_config(), "sft=null", runs=runs.root), 2)
    assert "this configuration has no sft section" in error
    file = ("feedback=null", "preferences=x.jsonl")
    for command in ("push", "pull"):
        error = one_line(accord("feedback", command, demo_config(), *file, runs=runs.root), 2)
        assert "no feedback section" in error
    assert len(runs.all()) == 2  # nothing was started


@pytest.mark.parametrize(
    ("mistyped", "says"),
    [
        ("trian", "Did you mean 'accord reward train'?"),
        ("ruond", "Did you mean 'accord round'?"),
        ("runs shwo", "Did you mean 'accord runs show'?"),
        ("shw", "Did you mean 'accord runs show'?"),
        ("eval sutes", "Did you mean 'accord eval suites'?"),
        ("feedback pul", "Did you mean 'accord feedback pull'?"),
        ("feedback mine.yaml", "'accord feedback pull mine.yaml' fetches what they said."),
        ("xyzzy", "No such command 'xyzzy'."),
    ],
)
def test_a_mistyped_command(mistyped: str, says: str) -> None:
    done = subprocess.run([ACCORD, *mistyped.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"Error: No such command '{mistyped.split()[-1]}'.")
    assert done.stderr.strip().endswith(says)


@pytest.mark.parametrize(
    ("path", "command"), [each for each in COMMANDS if isinstance(each[1], click.Group)],
    ids=lambda each: "-".join(each) or "accord" if isinstance(each, tuple) else "",
)  # fmt: skip
def test_a_list_of_commands_is_a_line_each(path: tuple[str, ...], command: click.Group) -> None:
    listed = accord(*path, "--help").output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(command.commands)
    assert all(line.endswith(".") and not line.endswith("...") and len(line) <= 80 for line in listed)


def test_an_ambiguous_id_exits_with_2(runs: Runs, made: list[Run]) -> None:
    with runs.begin("sft", Config(), {"other": made[0]}) as run:
        run.finish({})
    error = one_line(accord("runs", "show", "sft", runs=runs.root), 2)
    assert "'sft' matches 2 runs" in error
    assert "no run in" in one_line(accord("runs", "show", "dpo-9", runs=runs.root), 2)


def test_a_bad_file_exits_with_1(runs: Runs, tiny_model: object, tmp_path: Path) -> None:
    model = f"model={tiny_model.folder}"  # type: ignore[attr-defined]
    half = tmp_path / "half.jsonl"
    half.write_text('{"messages": [{"role": "user", "con')
    error = one_line(
        accord("sft", demo_config(), model, f"sft.demonstrations=[{{path: {half}}}]", runs=runs.root), 1
    )
    assert f"{half}:1: not valid JSON" in error
    error = one_line(
        accord("sft", demo_config(), model, f"sft.heldout={tmp_path / 'gone.jsonl'}", runs=runs.root), 1
    )
    assert error.startswith("error: sft.heldout: ") and "gone.jsonl: no such file" in error


def test_traceback_is_there_when_asked_for(runs: Runs) -> None:
    arguments = [ACCORD, "--runs", str(runs.root)]
    plain = subprocess.run([*arguments, "runs", "show", "x"], capture_output=True, text=True, check=False)
    assert plain.returncode == 2
    assert plain.stderr.startswith("error: no run in")
    assert plain.stderr.count("\n") == 1
    long = subprocess.run(
        [*arguments, "--traceback", "runs", "show", "x"], capture_output=True, text=True, check=False
    )
    assert long.returncode != 0
    assert "Traceback (most recent call last)" in long.stderr
    assert "UsageError: no run in" in long.stderr
