"""Log-probabilities of given answers under a model: teacher forcing, one forward pass for many tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from accord.models.adapters import adds_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def token_log_probabilities(
    model: "PreTrainedModel",
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    temperature: float = 1.0,
    sequences_at_once: int = 16,
) -> list[torch.Tensor]:
    """For scoring, so without gradients; the model is used in the mode (train or eval) that it is in.

    Sequences of similar length share a batch, padded on the right, and logits exist only from the first answer
    token of a batch on, in the model's dtype; a float32 tensor over the vocabulary is held for one sequence at a time.

    Args:
        model: any causal language model, also with a PEFT adapter.
        prompt_ids: for each sequence at least one token.
        response_ids: for each sequence the tokens to score.
        temperature: what the logits are divided by.
        sequences_at_once: rows of a batch.

    Returns:
        For each sequence a float32 tensor [answer tokens] on the CPU: log p(token | prompt, earlier answer tokens).
    """
    by_length = sorted(
        range(len(prompt_ids)), key=lambda index: len(prompt_ids[index]) + len(response_ids[index])
    )
    scored: list[torch.Tensor] = [torch.empty(0)] * len(prompt_ids)
    for first in range(0, len(by_length), sequences_at_once):
        batch = by_length[first : first + sequences_at_once]
        rows = [[*prompt_ids[index], *response_ids[index]] for index in batch]
        width = max(map(len, rows))
        start = (
            min(len(prompt_ids[index]) for index in batch) - 1
        )  # its logits predict the first answer token
        positions = {"position_ids": torch.arange(width, device=model.device).expand(len(rows), width)}
        any_model: Any = model
        if adds_tokens(model):
            positions = {}  # PEFT counts them itself, after those of the virtual tokens
        logits = any_model(
            input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device),
            attention_mask=torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device
            ),
            logits_to_keep=width - start,
            use_cache=False,
            **positions,
        ).logits  # [batch, width - start, vocabulary]
        for index, row_logits in zip(batch, logits, strict=True):
            answer = torch.tensor(response_ids[index], dtype=torch.long, device=model.device)
            begin = len(prompt_ids[index]) - 1 - start
            log_p = torch.log_softmax(row_logits[begin : begin + len(answer)].float() / temperature, dim=-1)
            scored[index] = log_p.gather(1, answer[:, None]).squeeze(1).cpu()
    return scored
