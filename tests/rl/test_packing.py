"""Packed rows give what the sequences give one by one, gradients included."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from accord.errors import UsageError
from rl.actors import Rows, _pack
from rl.packing import Packed

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 4, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2, tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "mistral, window of 4": MistralConfig(**SIZES, sliding_window=4),
    "gemma 3, every other layer a window of 4": Gemma3TextConfig(
        **SIZES, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
}


def sequences_of(seed: int) -> list[list[int]]:
    """A common front of 0 to 9 tokens, then 1 to 12 of each; sometimes one sequence, sometimes equal ones."""
    generator = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [generator.randrange(3, 50) for _ in range(generator.randint(least, most))]

    front = tokens(0, 9)
    found = [front + tokens(1, 12) for _ in range(generator.choice([1, 2, 3, 6]))]
    return found + found[:1] if generator.random() < 0.3 else found


def load(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_gradients_are_those_of_each_sequence_alone(name: str) -> None:
    for seed in range(12):
        sequences = sequences_of(seed)
        model = load(CONFIGS[name])
        weights = [torch.randn(len(ids), 24, dtype=torch.float64) for ids in sequences]
        plain = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in sequences]
        torch.stack([(w * states).sum() for w, states in zip(weights, plain, strict=True)]).sum().backward()
        right = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

        model.zero_grad()
        _pack(model)
        rows = Rows.of([ids[:1] for ids in sequences], [ids[1:] for ids in sequences])
        packed = rows.packed
        output = model.model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed
        ).last_hidden_state
        ours = rows.split(output)
        for states, alone in zip(ours, plain, strict=True):
            torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rows.join(ours), output, atol=0, rtol=0)
        torch.stack([(w * states).sum() for w, states in zip(weights, ours, strict=True)]).sum().backward()
        for n, gradient in right.items():
            torch.testing.assert_close(dict(model.named_parameters())[n].grad, gradient, atol=1e-4, rtol=1e-4)


def test_what_is_common_is_there_once() -> None:
    """Three sequences of 6, 5 and 4 tokens that begin with the same three: 3 + 3 + 2 + 1 tokens."""
    packed = Packed.of([[7, 8, 9, 1, 2, 3], [7, 8, 9, 4, 5], [7, 8, 9, 6]])
    assert packed.input_ids.tolist() == [[7, 8, 9, 1, 2, 3, 4, 5, 6]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 3]]
    rows, positions = torch.tensor([0, 1, 1, 2]), torch.tensor([5, 2, 4, 3])
    assert packed.input_ids[0, packed.place(rows, positions)].tolist() == [3, 9, 5, 6]


def test_a_prefix_leaves_a_token_of_every_sequence() -> None:
    packed = Packed.of([[7, 8], [7, 8], [7, 8, 9]])
    assert packed.input_ids.tolist() == [[7, 8, 8, 8, 9]]


def test_a_model_whose_attention_is_another_is_refused() -> None:
    """GPT-J rotates and attends in code of its own, which knows no packed rows."""
    from transformers import GPTJConfig

    model = load(GPTJConfig(vocab_size=50, n_embd=24, n_layer=1, n_head=2, rotary_dim=4))
    with pytest.raises(UsageError, match="GPTJForCausalLM does not work that way"):
        _pack(model)


def test_a_packing_model_refuses_anything_else() -> None:
    """Without `packed` it would attend to everything, silently."""
    model = load(CONFIGS["llama"])
    _pack(model)
    with pytest.raises(ValueError, match="packed rows only"):
        model(input_ids=torch.tensor([[5, 6, 7]]))
