"""The table of algorithms: who reads it, and an algorithm from a user's own file (imitation.py)."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from accord.config import load_config
from accord.errors import UsageError
from accord.models.references import Model
from accord.page.render import run_page
from accord.round import run_round
from accord.round_config import RoundConfig
from accord.runs import Runs
from rl.algorithms import ALGORITHMS, algorithm_named

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "imitation.py"
IMITATION = f"{FILE}:IMITATION"


def round_config(tiny_model: Model, preferences: Path, **rl: Any) -> RoundConfig:
    return RoundConfig.model_validate(
        {
            "model": str(tiny_model.folder), "preferences": str(preferences),
            "sampling": {"engine": "transformers"},
            "eval": {"prompts": "x", "gate": {"eos_rate": {"margin": 1.0}}},
            "reward": {"rows_per_update": 16, "max_sequence_tokens": 300, "minimum_pairs": 4},
            "rl": rl,
        }
    )  # fmt: skip


def in_a_fresh_interpreter(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_says_of_itself_what_the_table_says(name: str) -> None:
    fields = ALGORITHMS[name].config().model_fields
    assert name == ALGORITHMS[name].name and name in str(fields["algorithm"].annotation)


def test_the_table_and_reading_a_configuration_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport accord.cli.main\nfrom accord.config import load_config\n"
        "from accord.round_config import RoundConfig\n"
        f"load_config(Path('configs/demo.yaml'), RoundConfig, ['rl={{algorithm: {IMITATION}}}'])\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    )
    assert in_a_fresh_interpreter(code).strip() == "[]"


def test_a_row_of_the_table_is_all_that_an_algorithm_needs() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(FILE.parent)!r})\n"
        "from imitation import IMITATION\nfrom rl.algorithms import ALGORITHMS\n"
        "ALGORITHMS['imitation'] = IMITATION\n"
        "from pathlib import Path\nfrom accord.cli.main import COMPUTE, main\n"
        "from accord.config import load_config\nfrom accord.round_config import RoundConfig\n"
        "config = load_config(Path('configs/demo.yaml'), RoundConfig, ['rl={algorithm: imitation, epochs: 3}'])\n"
        "assert config.rl.epochs == 3 and 'imitation' in COMPUTE\n"
        "main(['imitation', '--help'])"
    )
    assert "imitate preferred answers (rl.algorithm: imitation)" in " ".join(
        in_a_fresh_interpreter(code).split()
    )


@pytest.mark.usefixtures("one_thread")
def test_a_round_runs_an_algorithm_from_a_user_s_file(
    tiny_model: Model, preferences: Path, runs: Runs
) -> None:
    config = round_config(tiny_model, preferences, algorithm=IMITATION, learning_rate=1e-3)
    run = run_round(config, runs, until="imitation")
    assert run.id.startswith("imitation-") and run.record.config["algorithm"] == IMITATION
    assert run.metrics["pairs"] == 40
    assert run.metrics["train_loss"] < run.metrics["first_loss"] - 1
    assert run.record.inputs["algorithm"] and run_round(config, runs, until="imitation").id == run.id
    assert "Policy optimisation (IMITATION)" in run_page(run, runs)
    with pytest.raises(UsageError, match="run `accord round`, or change the algorithm"):
        run_round(config, runs, until="ppo")
    with pytest.raises(
        UsageError, match="no stage 'sarsa'; name one of sft, feedback, reward, eval, imitation"
    ):
        run_round(config, runs, until="sarsa")


def test_what_is_wrong_with_a_user_s_algorithm_is_said_of_its_key(tmp_path: Path) -> None:
    demo = ROOT / "configs" / "demo.yaml"
    (tmp_path / "mine.py").write_text("X = 1\ndef f(): ...\n")
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    (tmp_path / "stage.py").write_text(
        "from rl.algorithms import *\nA = Algorithm('sft', '', lambda: None, print)\n"
    )
    for reference, sentence in {
        f"{IMITATION}, epochs: 0": "'rl.epochs': input should be greater than or equal to 1, found 0",
        f"{IMITATION}, epoch: 2": "unknown key 'rl.epoch'; did you mean 'epochs'?",
        f"{tmp_path}/gone.py:A": r"'rl.algorithm': algorithm '.*gone.py:A': .*there is no such file",
        f"{tmp_path}/mine.py:Y": r"mine.py has no 'Y'",
        f"{tmp_path}/mine.py:X": r"is int, not rl.algorithms.Algorithm",
        f"{tmp_path}/broken.py:A": r"cannot be loaded \(ModuleNotFoundError: No module named 'no_such_module'\)",
        f"{tmp_path}/stage.py:A": r"its runs cannot be called 'sft'; give it a name",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            load_config(demo, RoundConfig, [f"rl={{algorithm: {reference}}}"])


def test_a_file_is_run_when_it_is_named_and_once_while_it_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    body = (
        f"from pathlib import Path\nwith Path({str(tmp_path / 'log')!r}).open('a') as log: log.write('x')\n"
        "from rl.algorithms import Algorithm\nA = Algorithm('counted', 'Count', lambda: None, print)\n"
    )
    file.write_text(body)
    load_config(ROOT / "configs" / "demo.yaml", RoundConfig)
    assert not (tmp_path / "log").exists()
    first = algorithm_named(f"{file}:A")
    assert algorithm_named(f"{file}:A") is first and (tmp_path / "log").read_text() == "x"
    file.write_text(body + "# another version\n")
    assert algorithm_named(f"{file}:A") is not first and (tmp_path / "log").read_text() == "xx"


def test_settings_that_were_read_are_taken_as_they_are_and_written_whole() -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", RoundConfig)
    again = RoundConfig.model_validate({**dict(config), "rl": config.rl})
    assert again.rl is config.rl
    assert config.model_dump(mode="json")["rl"] == config.rl.model_dump(mode="json")
    assert RoundConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="must be a section of settings"):
        RoundConfig.model_validate({**dict(config), "rl": "ppo"})
