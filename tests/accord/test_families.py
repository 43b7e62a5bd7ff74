"""Families of models: right figures in every part, or a sentence before a round starts."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from family_matrix import PARTS, cells
from tiny_families import FAMILIES, make_family

from accord import packing
from accord.config import LoraConfig
from accord.errors import UsageError
from accord.models.adapters import peft_config
from accord.models.families import attention_for, context_length, reward_model_class
from accord.models.loading import load_policy, load_reward_model
from accord.models.references import Model
from accord.packing import compute_packed_rows, packed_attention
from accord.preflight.families import family_faults, tiny_model
from accord.round_config import RoundConfig
from rl.policy_gradient.actors import pack
from rl.policy_gradient.layouts import check_logits

pytestmark = pytest.mark.usefixtures("one_thread")

NO_PPO = {
    "gemma2": "Gemma2ForCausalLM changes them after it", "cohere2": "Cohere2ForCausalLM changes them after it",
    "falcon_h1": "FalconH1Model does not work that way",
}  # fmt: skip
TOP = LoraConfig(rank=2, top_layers=2)


@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3_text", "gemma3", "opt", "qwen3_moe", "deepseek_v3", "cohere2", "falcon_h1"]
)
def test_every_part_is_right_or_refused(family: str) -> None:
    for part, cell in cells(family).items():
        if part.startswith("ppo") and family in NO_PPO:
            assert NO_PPO[family] in cell
        else:
            assert not any(word in cell for word in ("WRONG", "TRACEBACK", "refused")), f"{part}: {cell}"
    assert set(cells(family, PARTS[:1])) == {"log p"}


def test_layers_of_two_kinds_are_computed_once_beneath_the_adapters() -> None:
    """Gemma 3 rotates by the kind of a layer, which it knows by its number: nothing falls back to whole passes."""
    assert cells("gemma3_text", ["ppo top 2"])["ppo top 2"].endswith("(2 once)")
    assert cells("gpt2", ["ppo top 2"])["ppo top 2"].endswith("(1 once)")


def family_config(name: str, **settings: Any) -> Any:
    kind, of_family = FAMILIES[name]
    return getattr(transformers, kind)(**(of_family | settings))


def test_a_lost_soft_cap_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap of 5 moves the states by a few thousandths, which the trial must find, as it must a window that is lost."""
    for family, lost in (("gemma2", "softcap"), ("gemma3_text", "sliding_window")):
        model = tiny_model(family_config(family))
        right = copy.deepcopy(model)
        assert compute_packed_rows(right)

        def without(*tensors: Any, lost: str = lost, **options: Any) -> Any:
            return packed_attention(*tensors, **options | {lost: None})

        transformers.AttentionInterface.register(packing.ATTENTION, without)
        try:
            assert not compute_packed_rows(model), lost
        finally:
            transformers.AttentionInterface.register(packing.ATTENTION, packed_attention)


def test_what_packed_attention_does_not_know_is_refused() -> None:
    """GPT-OSS has sinks: a number more in every softmax."""
    assert not compute_packed_rows(tiny_model(family_config("gpt_oss")))
    one = torch.zeros(1, 1, 2, 4)
    packed = packing.Packed.of([[5, 6]])
    with pytest.raises(ValueError, match="knows no s_aux"):
        packed_attention(None, one, one, one, None, packed=packed, s_aux=torch.zeros(1), position_ids=1)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3", "granitemoehybrid"])
def test_experts_and_routers_have_adapters_in_the_top_layers_only(family: str, tmp_path: Path) -> None:
    model = make_family(family, tmp_path)
    adapted = peft.get_peft_model(load_policy(model), peft_config(model, TOP, "CAUSAL_LM"))
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names and not any(".layers.0." in name for name in names)
    for layer in (1, 2):
        here = [name for name in names if f".layers.{layer}." in name]
        assert any("experts" in name or "input_linear" in name for name in here)
        assert any(word in name for name in here for word in (".gate.", ".router."))
        assert any(word in name for name in here for word in ("self_attn", "mamba"))


def test_top_layers_are_those_that_read_text(tmp_path: Path) -> None:
    """Gemma 3 has as many that see here, before them."""
    model = make_family("gemma3", tmp_path)
    adapted = peft.get_peft_model(load_policy(model), peft_config(model, TOP, "CAUSAL_LM"))
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names and all(
        ".language_model.layers.2." in name or ".language_model.layers.3." in name for name in names
    )


def test_experts_have_no_dropout(tmp_path: Path) -> None:
    model = make_family("mixtral", tmp_path)
    with pytest.raises(UsageError, match=r"lora.dropout: mixtral has experts, .*; set it to 0"):
        peft_config(model, LoraConfig(dropout=0.1), "CAUSAL_LM")


def test_modules_that_peft_refuses_have_no_adapter(tmp_path: Path) -> None:
    model = make_family("mamba2", tmp_path)
    adapted = peft.get_peft_model(load_policy(model), peft_config(model, LoraConfig(), "CAUSAL_LM"))
    names = {
        name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1]
        for name, p in adapted.named_parameters()
        if p.requires_grad
    }
    assert names == {"in_proj"}


def test_a_model_without_experts_has_peft_s_all_linear(tiny_model: Model) -> None:
    assert peft_config(tiny_model, LoraConfig(), "CAUSAL_LM").target_modules == "all-linear"


@pytest.mark.parametrize("family", ["granite", "mamba2", "falcon_h1"])
def test_a_family_without_a_classifier_is_given_a_head_that_is_saved_and_loaded(
    family: str, tmp_path: Path
) -> None:
    """With the causal model's weights beneath it, and buffers that are not saved, as Falcon-H1 has them."""
    policy = make_family(family, tmp_path / "policy")
    model: Any = load_reward_model(policy, new_head=True)
    ids = torch.arange(3, 43)[None]
    body = packing.body_of(load_policy(policy).eval())
    with torch.no_grad():
        right = body(ids, use_cache=False).last_hidden_state
        assert torch.equal(packing.body_of(model.eval())(ids, use_cache=False).last_hidden_state, right)
        model.score.weight.fill_(0.1)
        model.save_pretrained(tmp_path / "reward")
        again = load_reward_model(Model("again", tmp_path / "reward", ""))
        assert torch.equal(again.eval()(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    settings = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert settings["architectures"][0].endswith("ForSequenceClassification") and "auto_map" not in settings


def test_a_family_without_text_gets_no_head() -> None:
    with pytest.raises(UsageError, match="vit models cannot be given a reward model's head"):
        reward_model_class(transformers.ViTConfig())


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")]
)
def test_attention_that_would_lose_a_cap_or_sinks_is_not_taken(
    family: str, expected: str, tmp_path: Path
) -> None:
    family_config(family).save_pretrained(tmp_path)
    assert attention_for(tmp_path, "sdpa") == expected


def test_positions_without_an_end() -> None:
    assert context_length(family_config("bloom")) == float("inf")
    assert context_length(family_config("gpt2")) == 256


RELEASED: dict[str, dict[str, Any]] = {
    "gemma3_text": {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "num_hidden_layers": 6},
    "deepseek_v3": {}, "qwen3_moe": {}, "mixtral": {}, "olmo3": {}, "gpt2": {},
}  # fmt: skip


@pytest.mark.parametrize("family", RELEASED)
def test_a_tiny_model_is_made_of_settings_as_they_are_released(family: str) -> None:
    """Of the sizes of billions of weights: few and narrow layers of every kind, on which PPO's trials pass."""
    tiny = tiny_model(getattr(transformers, FAMILIES[family][0])(**RELEASED[family]))
    assert tiny is not None and sum(p.numel() for p in tiny.parameters()) < 1e7
    kinds = getattr(tiny.config, "layer_types", None) or [""]
    if family in ("gemma3_text", "olmo3"):
        assert set(kinds) == {"sliding_attention", "full_attention"} and tiny.config.sliding_window == 16
    check_logits(tiny)
    pack(packing.body_of(tiny), 64)


def round_config(**changes: Any) -> RoundConfig:
    whole: dict[str, Any] = {
        "model": "unused",
        "preferences": "pairs.jsonl",
        "reward": {},
        "eval": {"prompts": "prompts.jsonl", "gate": {"utility": {"direction": "higher", "margin": 0.5}}},
        "rl": {"algorithm": "ppo", "prompts": "prompts.jsonl"},
    }
    for key, value in changes.items():
        whole[key] = whole.get(key, {}) | value
    return RoundConfig.model_validate(whole)


def sentences(family: str, folder: Path, **changes: Any) -> list[str]:
    model = make_family(family, folder)
    found = family_faults(model, round_config(**changes), ["reward", "rl", "eval"])
    return [f"{key}: {error}" for key, error in found]


def test_what_ppo_would_refuse_is_said_before_the_round(tmp_path: Path) -> None:
    (said,) = sentences("gemma2", tmp_path / "gemma2", rl={"max_sequence_tokens": 200})
    assert said.startswith("rl: PPO takes logits from the output layer, and Gemma2ForCausalLM")
    (said,) = sentences("falcon", tmp_path / "falcon", rl={"max_sequence_tokens": 200})
    assert "FalconModel does not work that way; use rl.algorithm=dpo" in said
    (said,) = sentences("llama", tmp_path / "llama", rl={"max_sequence_tokens": 300})
    assert said.startswith("rl: rl.max_sequence_tokens is 300, and llama reads at most 256 tokens")
    assert not sentences("gemma3_text", tmp_path / "gemma3", rl={"max_sequence_tokens": 200})


def test_experts_that_would_not_be_shared_are_said_before_the_round(tmp_path: Path) -> None:
    rl = {"max_sequence_tokens": 200, "shared_base": True}
    (said,) = sentences(
        "qwen3_moe", tmp_path / "one", rl=rl | {"lora": {"top_layers": 2}}, reward={"lora": {"top_layers": 1}}
    )
    assert "rl.shared_base: the experts" in said and "the same top_layers" in said
    assert not sentences(
        "qwen3_moe", tmp_path / "two", rl=rl | {"lora": {"rank": 2}}, reward={"lora": {"rank": 4}}
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "nonsense"}', "no family that transformers knows"),
        ('{"model_type": "t5"}', "do not continue"),
    ],
)
def test_what_is_no_causal_model_is_said_before_the_round(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    ((key, error),) = family_faults(Model("it", tmp_path, ""), round_config(), ["sft"])
    assert key == "model" and said in str(error)


def test_a_balance_loss_that_trl_cannot_compute_is_said_before_the_round(tmp_path: Path) -> None:
    rl: dict[str, Any] = {"algorithm": "dpo"}
    model = make_family("granitemoehybrid", tmp_path)
    whole = round_config().model_dump(exclude_unset=True) | {"rl": rl}
    (found,) = family_faults(model, RoundConfig.model_validate(whole), ["rl"])
    assert found[0] == "rl.trainer" and "set router_aux_loss_coef there to 0.0" in str(found[1])
    for family in ("deepseek_v3", "mixtral", "gpt_oss"):  # has no such loss; has the number under that name
        assert not family_faults(
            make_family(family, tmp_path / family), RoundConfig.model_validate(whole), ["rl"]
        )
    rl["trainer"] = {"router_aux_loss_coef": 0.0}
    assert not family_faults(model, RoundConfig.model_validate(whole), ["rl"])


def test_a_model_that_cannot_be_made_tiny_is_not_tried() -> None:
    config = family_config("llama")
    config.hidden_act = "nonsense"
    assert tiny_model(config) is None
