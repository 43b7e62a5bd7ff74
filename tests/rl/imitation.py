"""An algorithm of one's own: the policy imitates the answers that people preferred, and ignores the others.

rl: {algorithm: "tests/rl/imitation.py:IMITATION", learning_rate: 1.0e-4}
"""

from pathlib import Path

from pydantic import Field

from accord.runs import DataFile, Run, file_of
from rl.algorithms import Algorithm, Inputs
from rl.config import AlgorithmConfig


class ImitationConfig(AlgorithmConfig):
    """Maximum likelihood of the preferred answers, one pair a step."""

    learning_rate: float = Field(default=1e-5, gt=0)
    epochs: int = Field(default=1, ge=1)
    seed: int = 0


def train(config: ImitationConfig, inputs: Inputs) -> Run:
    # Heavy libraries are imported here, so that reading a configuration stays fast.
    import torch

    from accord.chat.tokens import encode_conversation, encode_prompt
    from accord.models.loading import load_policy, load_tokenizer
    from accord.records import Preference, read_jsonl
    from accord.training import save_model

    sources = {
        "policy": inputs.policy, "preferences": inputs.preferences,
        "algorithm": DataFile(Path(__file__)),  # another version of this file makes another run
    }  # fmt: skip
    with inputs.runs.begin("imitation", config, sources) as run:
        if run.is_done:
            return run
        tokenizer, model = load_tokenizer(inputs.policy), load_policy(inputs.policy)
        rows = read_jsonl(file_of(inputs.preferences, "preferences.jsonl"), Preference)
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        losses: list[float] = []
        for _ in range(config.epochs):
            for row in rows:
                ids = torch.tensor([encode_conversation(tokenizer, [*row.prompt, *row.chosen]).input_ids])
                labels = ids.clone()
                labels[:, : len(encode_prompt(tokenizer, row.prompt))] = -100  # not learned
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
                losses.append(loss.item())
        save_model(model, tokenizer, run, base=None)
        run.finish({"pairs": len(rows), "first_loss": losses[0], "train_loss": losses[-1]})
    return run


IMITATION = Algorithm(
    "imitation", "Optimise the policy to imitate preferred answers", lambda: ImitationConfig, train
)
