import pytest
import torch

from rl.maths.token_statistics import token_statistics


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("weight_learns", [True, False])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_values_and_gradients_are_those_of_a_whole_softmax(
    chunk: int, weight_learns: bool, with_entropy: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, g1, g2 = (
        torch.randn(*shape, generator=generator) for shape in ((7, 5), (11, 5), (7,), (7,))
    )
    g2 = g2 * with_entropy
    tokens = torch.randint(0, 11, (7,), generator=generator)
    results = []
    for whole in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(weight_learns)
        if whole:
            log_p = (h @ w.T / 0.7).log_softmax(-1)
            log_probabilities = log_p.gather(1, tokens[:, None]).squeeze(1)
            entropies = -(log_p.exp() * log_p).sum(-1)
        else:
            log_probabilities, entropies = token_statistics(h, w, tokens, 0.7, chunk)
        (g1 @ log_probabilities + g2 @ entropies).backward()
        assert (w.grad is not None) == weight_learns
        results.append([log_probabilities, entropies, h.grad, *([w.grad] if weight_learns else [])])
    for ours, right in zip(*results, strict=True):
        assert ours is not None and right is not None
        torch.testing.assert_close(ours, right, atol=1e-5, rtol=1e-5)


def test_without_a_gradient_for_entropy() -> None:
    """d log p / d h = (w_y - sum_v p_v w_v): two equal logits, so half the difference of their weights."""
    hidden = torch.zeros(1, 2, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    statistics = token_statistics(hidden, weight, torch.tensor([1]))
    statistics.log_probabilities.sum().backward()
    assert statistics.entropies.item() == pytest.approx(0.6931472)
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[-0.5, 1.5]]


def test_no_logits_are_kept() -> None:
    """200 tokens by 5,000 words: what autograd saves is far less than those million logits."""
    saved = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    hidden, weight = torch.randn(200, 4, requires_grad=True), torch.randn(5000, 4)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        token_statistics(hidden, weight, torch.zeros(200, dtype=torch.long), tokens_per_chunk=16)
    slopes = hidden.numel()
    assert saved == hidden.numel() + weight.numel() + 2 * 200 + slopes
