"""Settings that no training could use are refused with one sentence, before anything starts."""

from pathlib import Path

import pytest
from damaged_settings import FILES, PLAIN, RANGES
from pydantic import ValidationError

from accord.config import load_config
from accord.errors import UsageError
from accord.round_config import RoundConfig
from rl.algorithms import ALGORITHMS, config_class


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


@pytest.mark.parametrize(("override", "told"), RANGES, ids=lambda text: text[:40])
def test_a_setting_out_of_its_range(file: Path, override: str, told: str) -> None:
    assert told in refusal(file, override)


@pytest.mark.parametrize(("text", "told"), FILES, ids=lambda text: text[:40])
def test_a_file_without_an_end(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        load_config(file, RoundConfig)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_every_number_has_a_least_and_a_largest_value() -> None:
    """Or is one of the few that may be below zero; what has no largest value of its own has that of all settings."""
    below_zero = {"length_penalty_per_token"}
    schemas = [
        RoundConfig.model_json_schema(),
        *(config_class(name).model_json_schema() for name in ALGORITHMS),
    ]
    for schema in schemas:
        for section in [schema, *schema.get("$defs", {}).values()]:
            for key, setting in section.get("properties", {}).items():
                for kind in [setting, *setting.get("anyOf", [])]:
                    if kind.get("type") in ("integer", "number") and "enum" not in kind:
                        assert {"minimum", "exclusiveMinimum"} & kind.keys() or key in below_zero, key
    assert config_class("ppo")(algorithm="ppo", prompts="a", score_clip=1e9)
    with pytest.raises(ValidationError, match=r"score_clip: is 1e\+11, and no setting is beyond"):
        config_class("ppo")(algorithm="ppo", prompts="a", score_clip=1e11)


def test_what_may_be(file: Path) -> None:
    aliases = "sft: &s {demonstrations: rows.jsonl}\nmodel: &m some/model\nchat_template: *m\n"
    file.write_text(aliases)
    config = load_config(
        file, RoundConfig, ["sft.seed=4294967295", "sft.lora={rank: 1, alpha: 1, dropout: 0.99}"]
    )
    assert config.sft and config.sft.seed == 2**32 - 1 and config.chat_template == "some/model"
