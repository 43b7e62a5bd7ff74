"""Log-probabilities and entropies of tokens from hidden states, without ever keeping their logits.

With a vocabulary of 49,152, the float32 logits of 4,000 tokens are 800 MB, and a softmax with its gradient takes that
three times. Here the output layer is applied to a few hundred tokens at a time; what remains is two numbers a token
and, for a frozen output layer, a vector as long as the hidden state.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

TOKENS_PER_CHUNK = {"cpu": 64, "cuda": 1024}
"""Few enough on a CPU that a chunk's logits stay in its cache: that halves the time of all that is done to them."""


class TokenStatistics(NamedTuple):
    """With gradients: log p of each token, and the entropy in nats of the distribution that it was drawn from."""

    log_probabilities: Float32[Tensor, "*tokens"]
    entropies: Float32[Tensor, "*tokens"]


def token_statistics(
    hidden: Float[Tensor, "tokens size"],
    weight: Float[Tensor, "vocabulary size"],
    tokens: Int[Tensor, " tokens"],
    temperature: float = 1.0,
    tokens_per_chunk: int | None = None,
) -> TokenStatistics:
    """log p(token) and entropy under softmax(hidden @ weight.T / temperature).

    Args:
        hidden: the states that predict the tokens.
        weight: the output layer, without bias; it gets a gradient where it asks for one.
        tokens: ids.
        temperature: what the logits are divided by.
        tokens_per_chunk: of how many tokens the logits exist at a time; by default what suits the device.
    """
    chunk = tokens_per_chunk or TOKENS_PER_CHUNK.get(hidden.device.type, 256)
    return TokenStatistics(*_TokenStatistics.apply(hidden, weight, tokens, temperature, chunk))


class _TokenStatistics(torch.autograd.Function):
    """With p = softmax(z): d log p_y / dz = onehot(y) - p, and d H / dz = -p * (log p + H).

    Where the output layer is frozen, d log p_y / d hidden is one vector a token whatever the loss is, so it is made in
    the forward pass, where the logits exist. Otherwise, and for the entropy, the backward pass makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, chunk: int
    ) -> Any:
        log_probabilities, entropies = (
            torch.empty(len(hidden), dtype=torch.float32, device=hidden.device) for _ in range(2)
        )
        learns, learns_weight = ctx.needs_input_grad[:2]
        slopes = torch.empty_like(hidden) if learns and not learns_weight else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            log_p = _log_softmax(hidden[part], weight, temperature)
            log_probabilities[part] = log_p.gather(1, tokens[part, None]).squeeze(1)
            p = log_p.exp()
            entropies[part] = -torch.linalg.vecdot(p, log_p)
            if slopes is not None:
                slope = weight[tokens[part]] - p.to(weight.dtype) @ weight
                slopes[part] = (slope / temperature).to(hidden.dtype)
        ctx.save_for_backward(hidden, weight, tokens, entropies, slopes)
        ctx.temperature, ctx.chunk = temperature, chunk
        return log_probabilities, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        for_log_p, for_entropy = gradients
        hidden, weight, tokens, entropies, slopes = ctx.saved_tensors
        with_entropy = bool(for_entropy.any())
        if slopes is not None and not with_entropy:
            return (for_log_p[:, None] * slopes).to(hidden.dtype), None, None, None, None
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            log_p = _log_softmax(hidden[part], weight, ctx.temperature)
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


def _log_softmax(
    hidden: Float[Tensor, "tokens size"], weight: Float[Tensor, "vocabulary size"], temperature: float
) -> Float32[Tensor, "tokens vocabulary"]:
    """The product itself is taken in the weight's dtype."""
    with torch.autocast(hidden.device.type, enabled=False):
        return (hidden.to(weight.dtype) @ weight.T).float().div_(temperature).log_softmax(dim=-1)
