"""Settings that no training could use are refused with one sentence, before anything starts."""

from pathlib import Path

import pytest

from accord.config import load_config
from accord.errors import UsageError
from accord.round_config import RoundConfig

PLAIN = """
sft: {demonstrations: rows.jsonl}
reward: {lora: {rank: 2}}
eval: {prompts: rows.jsonl, gate: {eos_rate: {margin: 0.1}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "round.yaml"
    path.write_text(PLAIN)
    return path


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as refused:
        load_config(file, RoundConfig, overrides)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 800
    return str(refused.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("reward.lora.rank=0", "'reward.lora.rank': input should be greater than or equal to 1, found 0"),
        ("reward.lora.rank=-1", "'reward.lora.rank': input should be greater than or equal to 1, found -1"),
        ("reward.lora.alpha=0", "'reward.lora.alpha': input should be greater than or equal to 1, found 0"),
        ("reward.lora.dropout=1", "'reward.lora.dropout': input should be less than 1, found 1"),
        ("reward.lora.dropout=-0.1", "'reward.lora.dropout': input should be greater than or equal to 0"),
        ("reward.lora.dropout=.nan", "'reward.lora.dropout': input should be a finite number, found nan"),
        ("sft.epochs=.inf", "'sft.epochs': input should be a finite number, found inf"),
        ("sft.epochs=1e30", "'sft.epochs': input should be less than or equal to 10000, found 1e+30"),
        ("sft.epochs=1e-9", "'sft.epochs': input should be greater than or equal to 0.001, found 1e-09"),
        ("sft.learning_rate=.inf", "'sft.learning_rate': input should be a finite number, found inf"),
        ("sft.seed=-5", "'sft.seed': input should be greater than or equal to 0, found -5"),
        ("sft.seed=4294967296", "'sft.seed': input should be less than 4294967296, found 4294967296"),
        ("reward.seed=" + "9" * 26, "'reward.seed': input should be less than 4294967296"),
        ("reward.heads=100000", "'reward.heads': input should be less than or equal to 64, found 100000"),
        ("eval.gate.eos_rate.margin=.inf", "'eval.gate.eos_rate.margin': input should be a finite number"),
        (".rl=1", "'.rl=1' is no override; write key=value"),
        ("rl..algorithm=dpo", "'rl..algorithm=dpo' is no override; write key=value"),
        ("rl.=1", "'rl.=1' is no override; write key=value"),
        ("sft.seed=" + "9" * 5000, "the value is not valid YAML (Exceeds the limit"),
        ("model=" + "[" * 5000, "nested more than 64 levels deep"),
        ("model=&a [*a]", "an alias refers to what it is in"),
        ("sft.trainer=&a {b: *a}", "an alias refers to what it is in"),
    ],
)  # fmt: skip
def test_a_setting_out_of_its_range(file: Path, override: str, told: str) -> None:
    assert told in refusal(file, override)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sft: {demonstrations: a, trainer: &x {a: *x}}\n", "an alias refers to what it is in"),
        ("model: " + "[" * 5000, "nested more than 64 levels deep"),
        ("sft: {demonstrations: a, seed: " + "1" * 5000 + "}\n", "Exceeds the limit"),
        ("- &a [*a]\n", "an alias refers to what it is in"),
        ("a: &a [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]\n" for i in range(1, 60)),
         "unknown key 'a'"),
    ],
)  # fmt: skip
def test_a_file_without_an_end(file: Path, text: str, told: str) -> None:
    """Recursive aliases, depth, numbers of thousands of digits, and aliases of aliases, which would fill the memory."""
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        load_config(file, RoundConfig)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_what_may_be(file: Path) -> None:
    aliases = "sft: &s {demonstrations: rows.jsonl}\nmodel: &m some/model\nchat_template: *m\n"
    file.write_text(aliases)
    config = load_config(
        file, RoundConfig, ["sft.seed=4294967295", "sft.lora={rank: 1, alpha: 1, dropout: 0.99}"]
    )
    assert config.sft and config.sft.seed == 2**32 - 1 and config.chat_template == "some/model"
