"""Configurations to start from, their schema, and the commands about them."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from accord.cli.config import PURPOSES, SCHEMA
from accord.cli.main import main
from accord.config import _StrictLoader, load_config
from accord.models.references import Model
from accord.preflight import check_round
from accord.round_config import RoundConfig
from accord.round_schema import round_schema
from accord.runs import Runs
from rl.algorithms import ALGORITHMS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(round_schema())


def read(text: str) -> Any:
    return yaml.load(text, _StrictLoader)


def accord(*arguments: str | Path, exit_code: int = 0) -> Result:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == exit_code, done.output
    return done


# --- what ships


@pytest.mark.parametrize("purpose", PURPOSES)
def test_what_init_writes_is_short_and_good(purpose: str, tiny_model: Model, runs: Runs) -> None:
    path = ROOT / "configs" / f"{purpose}.yaml"
    assert len(path.read_text().splitlines()) < 20
    config = load_config(path, RoundConfig, [f"model={tiny_model.folder}", "sampling.engine=transformers"])
    check_round(config, runs)


@pytest.mark.parametrize(
    ("purpose", "section"), [("sft", "sft"), ("dpo", "rl"), ("kto", "rl"), ("reward", "reward")]
)
def test_each_runs_as_it_stands_on_a_tiny_model(
    purpose: str, section: str, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    accord("init", purpose)
    settings = {"epochs": 0.3, "rows_per_update": 8, "max_sequence_tokens": 600, "lora.rank": 2}
    overrides = [f"{section}.{name}={value}" for name, value in settings.items()]
    accord(purpose, f"{purpose}.yaml", f"model={tiny_model.folder}", *overrides)
    (run,) = [run for run in Runs("runs").all() if run.record.stage != "data"]
    assert run.record.stage == purpose and run.is_done and run.record.dropped.get("too_long", 0) == 0


# --- accord init


def test_init_writes_a_configuration_and_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = accord("init").output
    assert "accord config check round.yaml" in said and "accord round round.yaml" in said
    first, *rest = Path("round.yaml").read_text().splitlines()
    assert first == f"# yaml-language-server: $schema={SCHEMA}"
    assert rest == (ROOT / "configs" / "round.yaml").read_text().splitlines()
    assert json.loads(Path(SCHEMA).read_text()) == round_schema()
    refused = accord("init", exit_code=2)
    assert "round.yaml is there already; name another file with --output" in refused.stderr
    accord("init", "dpo", "--output", tmp_path / "new" / "mine.yaml")
    assert load_config(tmp_path / "new" / "mine.yaml", RoundConfig).preferences
    assert (tmp_path / "new" / SCHEMA).is_file()


def test_init_works_from_a_wheel(tmp_path: Path) -> None:
    """Built with the project's own backend, and unpacked where Python finds it first: as installed, without network."""
    code = (
        "import sys, tempfile\nfrom hatchling import build\n"
        "folder = tempfile.mkdtemp()\nprint(folder + '/' + build.build_wheel(folder))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    wheel = Path(done.stdout.strip().splitlines()[-1])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    shutil.rmtree(wheel.parent)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for purpose in PURPOSES:
        command = [sys.executable, "-m", "accord", "init", purpose]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        written = (tmp_path / f"{purpose}.yaml").read_text()
        assert written.endswith((ROOT / "configs" / f"{purpose}.yaml").read_text())
        files = re.findall(r"bundled:(demo/\S+)", written)
        assert all((tmp_path / "installed/accord/bundled" / file).is_file() for file in files)


# --- accord config


def test_check_says_what_runs_or_all_that_is_wrong(
    tiny_model: Model, preferences: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {tiny_model.folder}\npreferences: {preferences}\nreward: {{}}\nrl: {{}}\n")
    runs = ("--runs", tmp_path / "runs")
    assert accord(*runs, "config", "check", path).output == f"ok: {path} runs reward, dpo\n"
    assert json.loads(accord(*runs, "config", "check", path, "--json").output)["stages"] == ["reward", "dpo"]
    wrong = ("rl.learning_rte=1",)
    assert (
        "did you mean 'learning_rate'" in accord(*runs, "config", "check", path, *wrong, exit_code=2).stderr
    )
    wrong = ("preferences=gone.jsonl", "reward.previous=run:reward-1")
    found = json.loads(accord(*runs, "config", "check", path, *wrong, "--json", exit_code=2).stdout)
    assert [line.split(":")[0] for line in found["wrong"]] == ["preferences", "reward.previous"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_show_prints_what_can_be_run(path: Path, tmp_path: Path) -> None:
    shown = accord("config", "show", path, "model=mine").output
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_config(tmp_path / "shown.yaml", RoundConfig) == load_config(path, RoundConfig, ["model=mine"])
    assert "reward: null" not in shown and "seed: 0" in shown
    assert json.loads(accord("config", "show", path, "--json").output)["model"]


# --- the schema


def test_the_schema_is_one_and_is_printed() -> None:
    jsonschema.Draft202012Validator.check_schema(round_schema())
    assert json.loads(accord("config", "schema").output) == round_schema()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert list(VALIDATOR.iter_errors(read(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "sft: {demonstrations: d.jsonl}",
        "sft: {demonstrations: [d.jsonl, {path: e.jsonl, weight: 2}]}",
        "rl: {epochs: 2}",
        "rl: {algorithm: grpo, prompts: p.jsonl, num_generations: 8}",
        'rl: {algorithm: "mine.py:BEST", whatever: 3}',
        "eval: {gate: {eos_rate: {margin: 0.1}, utility: null}}",
        "feedback: null\nrl: null",
    ],
)
def test_what_is_right_is_valid(text: str) -> None:
    assert list(VALIDATOR.iter_errors(read(text))) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sft: {demonstrations: d.jsonl, learning_rte: 1}", "'learning_rte' was unexpected"),
        ("rewrd: {}", "'rewrd' was unexpected"),
        ("sft: {}", "'demonstrations' is a required property"),
        ("rl: {learning_rte: 1}", "'learning_rte' was unexpected"),
        ("rl: {algorithm: ppo, prompts: p, loss: ipo}", "'loss' was unexpected"),
        ("rl: {algorithm: ppo}", "'prompts' is a required property"),
        ("rl: {algorithm: kto, labels: stars}", "'stars' is not one of ['pairs', 'ratings']"),
        ("rl: {algorithm: sarsa}", "'sarsa' is not one of"),
        ("eval: {gate: {eos_rate: {margn: 0.1}}}", "'margn' was unexpected"),
        ("sft: {demonstrations: [{path: x, wieght: 1}]}", "'wieght' was unexpected"),
        ("reward: {epochs: many}", "'many' is not of type 'number'"),
    ],
)
def test_a_slip_is_marked(text: str, says: str) -> None:
    def told(errors: Any) -> list[str]:
        return [line for error in errors for line in (error.message, *told(error.context or ()))]

    assert any(says in line for line in told(VALIDATOR.iter_errors(read(text))))


def test_settings_are_explained_and_every_algorithm_is_known() -> None:
    schema = round_schema()
    assert schema["$defs"]["SFTConfig"]["properties"]["packing"]["description"].startswith("Several conversa")
    rl = schema["properties"]["rl"]["anyOf"][0]
    assert rl["properties"]["algorithm"]["anyOf"][0]["enum"] == list(ALGORITHMS)
