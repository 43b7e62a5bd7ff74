import dataclasses
from pathlib import Path

import pytest
from pydantic import Field

from accord.config import Config, LoraConfig, check_trainer_arguments, load_config
from accord.errors import UsageError


class Part(Config):
    path: str
    weight: float = 1.0


class Stage(Config):
    learning_rate: float = 1e-5
    lora: LoraConfig | None = None
    files: list[Part] = Field(default_factory=list)
    name: str | None = None


class Whole(Config):
    stage: Stage = Stage()
    other: Stage | None = None


def load(tmp_path: Path, text: str, *overrides: str) -> Whole:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path, Whole, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("stagee: {}", "stagee", "stage"),
        ("stage: {learning_rte: 1}", "stage.learning_rte", "learning_rate"),
        ("stage: {lora: {rnk: 4}}", "stage.lora.rnk", "rank"),
        ("other: {lora: {alhpa: 4}}", "other.lora.alhpa", "alpha"),
        ("stage: {files: [{path: a}, {path: b, wieght: 2}]}", "stage.files.1.wieght", "weight"),
    ],
)
def test_an_unknown_key_is_refused_at_every_depth(
    tmp_path: Path, text: str, key: str, suggestion: str
) -> None:
    assert refusal(tmp_path, text).endswith(f"config.yaml: unknown key '{key}'; did you mean '{suggestion}'?")


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "stage: {learning_rate: fast, files: [{weight: 1}]}")
    assert "'stage.learning_rate'" in message
    assert "found 'fast'" in message
    assert "'stage.files.0.path' is missing" in message


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "stage:\n  name: a\n  name: b\n")
    assert "the key 'name' is written twice" in message
    assert "line 2" in message


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.yaml: cannot be read"):
        load_config(tmp_path / "gone.yaml", Whole)
    assert "is not valid YAML" in refusal(tmp_path, "stage: [")
    assert "is not valid YAML" in refusal(tmp_path, "stage: !!python/object:os.system {}")
    assert "must hold a mapping" in refusal(tmp_path, "- a\n- b\n")
    assert "must hold a mapping" in refusal(tmp_path, "")


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-6", "+1e-6", "0.000001", ".1e-5"])
def test_every_way_to_write_a_number_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"stage: {{learning_rate: {text}}}").stage.learning_rate == pytest.approx(1e-6)
    assert load(tmp_path, "{}", f"stage.learning_rate={text}").stage.learning_rate == pytest.approx(1e-6)


def test_what_only_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    for text in ("e5", "1e", "1e5x", "run-1e5"):
        assert load(tmp_path, f"stage: {{name: {text}}}").stage.name == text


def test_numbers_in_an_untyped_mapping_are_numbers(tmp_path: Path) -> None:
    """`trainer:` goes to TRL as it is; a string there would fail deep inside the optimiser."""

    class Free(Config):
        trainer: dict[str, object] = Field(default_factory=dict)

    path = tmp_path / "config.yaml"
    path.write_text("trainer: {weight_decay: 1e-2, steps: 3}")
    assert load_config(path, Free, ["trainer.adam_epsilon=1e-8"]).trainer == {
        "weight_decay": 0.01,
        "steps": 3,
        "adam_epsilon": 1e-8,
    }


def test_overrides(tmp_path: Path) -> None:
    text = "stage: {name: old, learning_rate: 0.1}"
    assert load(tmp_path, text, "stage.name=new").stage == Stage(name="new", learning_rate=0.1)
    assert load(tmp_path, text, "stage.name=a=b").stage.name == "a=b"
    assert load(tmp_path, text, "stage.name=").stage.name is None
    assert load(tmp_path, text, "stage.lora={rank: 4}").stage.lora == LoraConfig(rank=4)
    assert load(tmp_path, text, "stage.lora.rank=4").stage.lora == LoraConfig(rank=4)
    assert load(tmp_path, text, "other.files=[{path: x}]").other == Stage(files=[Part(path="x")])
    assert load(tmp_path, text, "stage.name=one", "stage.name=two").stage.name == "two"


def test_bad_overrides(tmp_path: Path) -> None:
    text = "stage: {learning_rate: 0.1}"
    assert "'stage.name' is no override" in refusal(tmp_path, text, "stage.name")
    assert "is no override" in refusal(tmp_path, text, "=3")
    assert "is not valid YAML" in refusal(tmp_path, text, "stage.name=[")
    assert "'learning_rate' is a value, not a section" in refusal(tmp_path, text, "stage.learning_rate.x=1")
    assert "unknown key 'stage.nme'; did you mean 'name'?" in refusal(tmp_path, text, "stage.nme=x")


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, "{}")
    with pytest.raises(ValueError, match="frozen"):
        config.stage = Stage()  # type: ignore[misc]


@dataclasses.dataclass
class Target:
    weight_decay: float = 0.0
    learning_rate: float = 0.0


def test_trainer_mapping() -> None:
    check_trainer_arguments("sft.trainer", {"weight_decay": 0.1}, Target, ["learning_rate"])
    with pytest.raises(
        UsageError, match=r"sft\.trainer\.weight_dcay: Target has no .* did you mean 'weight_decay'"
    ):
        check_trainer_arguments("sft.trainer", {"weight_dcay": 0.1}, Target, ["learning_rate"])
    with pytest.raises(UsageError, match=r"sft\.trainer\.learning_rate: accord sets this one"):
        check_trainer_arguments("sft.trainer", {"learning_rate": 0.1}, Target, ["learning_rate"])


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_parses(path: Path) -> None:
    from accord.round import RoundConfig

    assert load_config(path, RoundConfig).model


def test_there_are_shipped_configs() -> None:
    assert "demo.yaml" in [path.name for path in CONFIGS]


def test_a_wrong_whole_is_one_sentence_without_the_whole(tmp_path: Path) -> None:
    from accord.round import RoundConfig

    demo = next(path for path in CONFIGS if path.name == "demo.yaml")
    with pytest.raises(UsageError) as caught:
        load_config(demo, RoundConfig, ["preferences=x.jsonl"])
    assert str(caught.value).endswith("demo.yaml: give either a feedback section or a preferences file")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "rl={algorithm: sarsa}",
            "'rl.algorithm': must be one of dpo, kto, ppo, rloo, grpo, best_of_n, or file.py:NAME for your own, "
            "found 'sarsa'",
        ),
        ("rl={algorithm: grpo, prompts: x, epoch: 3}", "unknown key 'rl.epoch'; did you mean 'epochs'?"),
        (
            "rl={loss: robust}",
            "'rl': loss: robust needs a label_smoothing above 0; without it, it is loss: sigmoid",
        ),
        ("rl={algorithm: ppo, prompts: x, update: 3}", "unknown key 'rl.update'; did you mean 'updates'?"),
        (
            "rl={algorithm: ppo, prompts: x, lora: {rnk: 3}}",
            "unknown key 'rl.lora.rnk'; did you mean 'rank'?",
        ),
        ("rl={algorithm: ppo}", "'rl.prompts' is missing"),
        ("rl={algorithm: ppo, prompts: x, shared_base: true}", "'rl': shared_base needs lora"),
        ("rl.learning_rat=1", "unknown key 'rl.learning_rat'; did you mean 'learning_rate'?"),
        ("sft=d.jsonl", "'sft': must be a section of settings, found 'd.jsonl'"),
        ("rl=ppo", "'rl': must be a section of settings, found 'ppo'"),
    ],
)
def test_a_section_of_two_kinds_is_named_without_its_kind(override: str, sentence: str) -> None:
    from accord.round import RoundConfig

    demo = next(path for path in CONFIGS if path.name == "demo.yaml")
    with pytest.raises(UsageError) as caught:
        load_config(demo, RoundConfig, [override])
    assert str(caught.value).endswith(f"demo.yaml: {sentence}")


def test_a_policy_is_optimised_by_dpo_where_no_algorithm_is_named() -> None:
    from accord.round import RoundConfig

    tiny = next(path for path in CONFIGS if path.name == "tiny.yaml")
    assert load_config(tiny, RoundConfig, ["rl={learning_rate: 1e-3}"]).rl.algorithm == "dpo"
    ppo = next(path for path in CONFIGS if path.name == "tiny-ppo.yaml")
    assert load_config(ppo, RoundConfig).rl.algorithm == "ppo"
    for algorithm in ("rloo", "grpo"):
        rl = load_config(tiny, RoundConfig, [f"rl={{algorithm: {algorithm}, prompts: x}}"]).rl
        assert rl.algorithm == algorithm and type(rl).__name__ == "OnlineConfig"
