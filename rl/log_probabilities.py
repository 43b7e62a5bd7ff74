"""Log-probabilities and entropies of tokens from hidden states, without ever keeping their logits.

With a vocabulary of 49,152, the float32 logits of 4,000 tokens are 800 MB, and a softmax with its gradient takes that
three times. Here the output layer is applied to a few hundred tokens at a time; what remains is two numbers a token,
and the backward pass computes the logits again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

TOKENS_PER_CHUNK = 256


class TokenStatistics(NamedTuple):
    """Both [T], float32, with gradients: log p of the token, and the entropy in nats of the distribution."""

    log_probabilities: Tensor
    entropies: Tensor


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    tokens_per_chunk: int = TOKENS_PER_CHUNK,
) -> TokenStatistics:
    """log p(token) and entropy under softmax(hidden @ weight.T / temperature).

    Args:
        hidden: [T, d], the states that predict the tokens.
        weight: [V, d], the output layer, without bias; it gets a gradient where it asks for one.
        tokens: [T], ids.
        temperature: what the logits are divided by.
        tokens_per_chunk: of how many tokens the logits exist at a time.
    """
    return TokenStatistics(*_TokenStatistics.apply(hidden, weight, tokens, temperature, tokens_per_chunk))


class _TokenStatistics(torch.autograd.Function):
    """With p = softmax(z): d log p_y / dz = onehot(y) - p, and d H / dz = -p * (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, chunk: int
    ) -> Any:
        log_probabilities, normalisers, entropies = (
            torch.empty(len(hidden), dtype=torch.float32, device=hidden.device) for _ in range(3)
        )
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], weight, temperature)
            normalisers[part] = logits.logsumexp(dim=-1)
            chosen = logits.gather(1, tokens[part, None]).squeeze(1)
            log_probabilities[part] = chosen - normalisers[part]
            log_p = logits.sub_(normalisers[part, None])
            entropies[part] = -(log_p.exp().mul_(log_p)).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, tokens, normalisers, entropies)
        ctx.temperature, ctx.chunk = temperature, chunk
        return log_probabilities, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        for_log_p, for_entropy = gradients
        hidden, weight, tokens, normalisers, entropies = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with_entropy = bool(for_entropy.any())
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_p = _logits(hidden[part], weight, ctx.temperature).sub_(normalisers[part, None])
            p = log_p.exp()
            if with_entropy:
                factor = log_p.add_(entropies[part, None]).mul_(for_entropy[part, None])
                logits_gradient = factor.add_(for_log_p[part, None]).mul_(p).neg_()
            else:
                logits_gradient = p.mul_(-for_log_p[part, None])
            logits_gradient.scatter_add_(1, tokens[part, None], for_log_p[part, None])
            logits_gradient = logits_gradient.div_(ctx.temperature).to(weight.dtype)
            hidden_gradient[part] = (logits_gradient @ weight).to(hidden.dtype)
            if weight_gradient is not None:
                weight_gradient.addmm_(logits_gradient.T, hidden[part].to(weight.dtype))
        return hidden_gradient, weight_gradient, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Float32 [tokens, V]; the product itself is taken in the weight's dtype."""
    with torch.autocast(hidden.device.type, enabled=False):
        return (hidden.to(weight.dtype) @ weight.T).float().div_(temperature)
