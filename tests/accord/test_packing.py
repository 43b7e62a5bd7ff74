"""Packed rows give what the sequences give one by one, gradients included."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from accord.errors import UsageError
from accord.packing import Packed, compute_packed_rows
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.rows import Rows

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
    other = front[:3] + tokens(2, 5)  # a second group
    found += [other + tokens(1, 6) for _ in range(generator.choice([0, 1, 3]))]
    generator.shuffle(found)
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
        assert compute_packed_rows(model)
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


def test_two_system_prompts_are_two_groups_and_what_shares_nothing_is_whole() -> None:
    """Two begin with 1 2 3, two with 1 2 4 4 4, one alone: a prefix of 2 for four would save 6 tokens, these 3 + 5."""
    sequences = [[1, 2, 3, 5], [1, 2, 4, 4, 4, 6], [9, 9], [1, 2, 3, 7], [1, 2, 4, 4, 4, 8]]
    packed = Packed.of(sequences)
    assert sorted((group.prefix, sorted(group.rows)) for group in packed.groups) == [
        (0, [2]),
        (3, [0, 3]),
        (5, [1, 4]),
    ]
    assert packed.input_ids.numel() == 22 - 3 - 5
    for row, ids in enumerate(sequences):
        positions = torch.arange(len(ids))
        places = packed.place(torch.tensor(row), positions)
        assert packed.input_ids[0, places].tolist() == ids
        assert packed.position_ids[0, places].tolist() == positions.tolist()


def test_groups_save_as_much_as_any_cut_of_the_sorted_sequences() -> None:
    for seed in range(30):
        sequences = sorted(sequences_of(seed) + sequences_of(seed + 100) + sequences_of(seed + 200))[:9]
        ours = sum(map(len, sequences)) - Packed.of(sequences).input_ids.numel()
        best = 0
        for cuts in range(2 ** (len(sequences) - 1)):
            saving, begin = 0, 0
            for end in range(1, len(sequences) + 1):
                if end == len(sequences) or cuts >> (end - 1) & 1:
                    part = sequences[begin:end]
                    common = 0
                    while (
                        common < min(map(len, part)) and len({tuple(ids[: common + 1]) for ids in part}) == 1
                    ):
                        common += 1
                    saving += min(common, min(map(len, part)) - 1) * (len(part) - 1)
                    begin = end
            best = max(best, saving)
        assert ours == best


def test_a_model_whose_attention_is_another_stays_as_it_is() -> None:
    """GPT-J rotates and attends in code of its own, which knows no packed rows."""
    from transformers import GPTJConfig

    model = load(GPTJConfig(vocab_size=50, n_embd=24, n_layer=1, n_head=2, rotary_dim=4))
    before = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert not compute_packed_rows(model)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, before)
    with pytest.raises(UsageError, match="GPTJModel does not work that way"):
        Actors(model, model, torch.nn.Linear(24, 1))


def test_a_model_that_computes_packed_rows_refuses_anything_else() -> None:
    """Without `packed` it would attend to everything, silently."""
    model = load(CONFIGS["llama"])
    compute_packed_rows(model)
    with pytest.raises(ValueError, match="packed rows only"):
        model(input_ids=torch.tensor([[5, 6, 7]]))
