"""The memory of a stage on paper: sizes of known models, and the arithmetic of layouts and shards."""

import json
import runpy
from pathlib import Path

import pytest

from accord.bundled import smollm2_135m_instruct
from accord.compute.planning import Devices, ModelShape, Work, estimate
from accord.errors import UsageError
from accord.models.references import Model

ROOT = Path(__file__).parents[2]
LLAMA_8B = ModelShape(4096, 32, 32, 4096, 1024, 14336, 128256)
GIB = 2**30


def gib(number: float) -> float:
    return round(number / GIB, 1)


def test_the_number_of_weights_of_known_models() -> None:
    assert LLAMA_8B.parameters == 8_030_261_248
    qwen = ModelShape(896, 24, 14, 896, 128, 4864, 151936, tied=True, attention_bias=True)
    assert qwen.parameters == 494_032_768  # Qwen2.5-0.5B
    mixtral = ModelShape(4096, 32, 32, 4096, 1024, 14336, 32000, experts=8, experts_per_token=2)
    assert mixtral.parameters == 46_702_792_704


@pytest.mark.slow
def test_the_bundled_model_from_its_configuration() -> None:
    assert ModelShape.of(smollm2_135m_instruct()).parameters == 134_515_008


def test_the_tiny_model_and_its_adapters_as_torch_counts_them(tiny_model: Model) -> None:
    import peft

    from accord.models.loading import load_policy

    model = load_policy(tiny_model)
    shape = ModelShape.of(tiny_model.folder)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    assert shape.adapters(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_folder_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config.json \(No such file"):
        ModelShape.of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 8}))
    with pytest.raises(UsageError, match="has no 'num_attention_heads', so its memory cannot be estimated"):
        ModelShape.of(tmp_path)


def test_weights_gradients_and_optimiser_of_8b() -> None:
    """Numbers of bytes a weight: 4 of weights, 4 of gradients, 8 of moments; of a frozen one 4 or 2."""
    full = estimate(LLAMA_8B, Work("sft"))
    assert [gib(each) for each in (full.weights, full.gradients, full.optimiser)] == [29.9, 29.9, 59.8]
    ppo = estimate(LLAMA_8B, Work("ppo"))
    assert [gib(each) for each in (ppo.weights, ppo.gradients, ppo.optimiser)] == [115.7, 29.9, 115.7]
    eight_bit = estimate(LLAMA_8B, Work("sft", adamw_8bit=True))
    others = LLAMA_8B.parameters - LLAMA_8B.embedding
    assert eight_bit.optimiser == round(8 * LLAMA_8B.embedding + (2 + 8 / 256) * others)
    assert gib(eight_bit.optimiser) == 18.1
    lora = estimate(LLAMA_8B, Work("ppo", lora_rank=16, bfloat16=True))
    assert gib(lora.weights) == gib(2 * (8_030_261_248 + LLAMA_8B.body) + 8 * LLAMA_8B.adapters(16))
    shared = estimate(LLAMA_8B, Work("ppo", lora_rank=16, bfloat16=True, shared_base=True))
    assert shared.weights < 0.56 * lora.weights


def test_shards_are_a_part_of_the_whole() -> None:
    whole = estimate(LLAMA_8B, Work("ppo"))
    for sharding in ("fsdp2", "zero3"):
        shards = estimate(LLAMA_8B, Work("ppo"), Devices(8, sharding))  # type: ignore[arg-type]
        assert (shards.weights, shards.gradients, shards.optimiser) == (
            whole.weights // 8, whole.gradients // 8, whole.optimiser // 8
        )  # fmt: skip
        assert shards.gathered > 0
    zero2 = estimate(LLAMA_8B, Work("ppo"), Devices(8, "zero2"))
    assert (zero2.weights, zero2.optimiser) == (whole.weights, whole.optimiser // 8)
    offloaded = estimate(LLAMA_8B, Work("ppo"), Devices(8, "fsdp2", offload=True))
    assert (offloaded.weights, offloaded.optimiser) == (0, 0)
    assert offloaded.host == pytest.approx((whole.weights + whole.gradients + whole.optimiser) / 8)


def test_activations_and_when_they_meet_gradients() -> None:
    kept = estimate(LLAMA_8B, Work("reward", tokens_per_pass=1000)).activations
    assert kept == 1000 * 32 * 4 * (6 * 4096 + 4 * 4096 + 4 * 14336)
    again = estimate(LLAMA_8B, Work("reward", tokens_per_pass=1000, checkpointing=True)).activations
    assert again == 1000 * (32 * 4 * 4096 + kept // 32_000)
    once, often = (estimate(LLAMA_8B, Work("reward", passes=passes)) for passes in (1, 2))
    assert once.gathered == 0 and often.gathered == 4 * LLAMA_8B.embedding  # a gradient before it is added
    assert often.total - once.total == often.gathered + min(often.gradients, often.activations)
    tile = 1024 * 32768  # TRL's, of logits
    on_gpu, on_cpu = (estimate(LLAMA_8B, Work("sft", attended=width)).activations for width in (0, 1))
    eager = 1024 * 32 * 4 * 32  # tokens, layers, bytes, heads, for each token that is attended
    assert (on_gpu - kept * 1024 // 1000, on_cpu - on_gpu - eager) == (4 * tile, 7.5 * 4 * tile)


def test_what_processes_tell_one_another() -> None:
    """A ring of n: (n - 1) / n of the bytes to gather or to scatter, twice that to sum."""
    number = LLAMA_8B.parameters
    work = Work("sft", passes=3)
    assert estimate(LLAMA_8B, work).sent == 0
    assert estimate(LLAMA_8B, work, Devices(4)).sent == pytest.approx(3 / 4 * 8 * number)
    assert estimate(LLAMA_8B, work, Devices(4, "zero2")).sent == pytest.approx(3 / 4 * 4 * number * 4)
    assert estimate(LLAMA_8B, work, Devices(4, "fsdp2")).sent == pytest.approx(3 / 4 * 3 * 12 * number)


def test_the_page_of_scale_is_up_to_date() -> None:
    make = runpy.run_path(str(ROOT / "docs/make_scale.py"))
    page = (ROOT / "docs/scale.md").read_text()
    assert make["with_table"](page) == page, "run docs/make_scale.py"
