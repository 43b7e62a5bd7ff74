"""How good a policy is on what it was not trained on.

A policy must not be chosen by the reward that it was trained on. Here it is chosen by what people said about held-out
answers: the policy that is optimal for a reward r at KL coefficient b is reference * exp(r / b) / Z, so every policy
implies a reward, b * log(policy / reference), and the loss of that reward on held-out preferences is low as long as the
policy moves towards what people prefer. It needs no second reward model, starts at ln 2, and rises when the policy
exploits the first. (The implied reward is that of Rafailov et al. 2023, https://arxiv.org/abs/2305.18290.)
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.chat.tokens import encode_conversation
from accord.errors import DataError
from accord.records import Demonstration, read_jsonl
from reward.score import combine
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.rows import Rows, micro_batches, share_passes
from rl.policy_gradient.settings import Passes

COEFFICIENT_WITHOUT_KL = 0.1
"""What stands for b where the KL costs nothing; DPO's usual one."""


@torch.no_grad()
def preference_loss(
    actors: Actors,
    pairs: Sequence[dict[str, Any]],
    kl_coefficient: float,
    passes: Passes,
) -> float:
    """The mean of -log sigmoid(b * (log-ratio of chosen - log-ratio of rejected)), log-ratios of policy to reference.

    Args:
        actors: policy and reference.
        pairs: rows with `prompt_ids`, `chosen_ids` and `rejected_ids`.
        kl_coefficient: b.
        passes: how both read them.
    """
    prompts = [pair["prompt_ids"] for pair in pairs for _ in range(2)]
    answers = [pair[side] for pair in pairs for side in ("chosen_ids", "rejected_ids")]
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    log_ratios = torch.zeros(len(answers), device=actors.device)
    for index, counts in share_passes(lengths, passes.tokens_per_pass):
        rows = Rows.of([prompts[i] for i in index], [answers[i] for i in index], actors.device)
        rows = actors.beneath(rows)
        slots = max(len(answers[i]) for i in index)
        policy = actors.policy_statistics(rows, slots, passes.temperature).log_probabilities
        reference = actors.reference_statistics(rows, slots, passes.temperature).log_probabilities
        if counts:
            log_ratios[index] = (policy - reference).sum(dim=1)
    parallel.sum_tensors([log_ratios])
    margins = (kl_coefficient or COEFFICIENT_WITHOUT_KL) * (log_ratios[::2] - log_ratios[1::2])
    return -torch.nn.functional.logsigmoid(margins).mean().item()


def mean_demonstration_score(
    actors: Actors,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    max_sequence_tokens: int,
    tokens_per_pass: int,
) -> float:
    """The mean score of the demonstrations in a file that are short enough.

    Raises:
        DataError: a bad file, or all are too long.
    """
    rows = [encode_conversation(tokenizer, row.messages).input_ids for row in read_jsonl(path, Demonstration)]
    short = [ids for ids in rows if len(ids) <= max_sequence_tokens]
    if not short:
        raise DataError(
            f"{path}: all demonstrations are longer than max_sequence_tokens ({max_sequence_tokens})"
        )
    scores: list[float] = []
    for index in micro_batches([len(ids) for ids in short], tokens_per_pass):
        # Scores are read at the last token, wherever the answer is said to begin.
        batch = Rows.of([short[i][:-1] for i in index], [short[i][-1:] for i in index], actors.device)
        scores += combine(actors.scores(batch), actors.ensemble).tolist()
    return statistics.fmean(scores)
