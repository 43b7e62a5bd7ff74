"""Writes trl_1_12_ppo.json: what TRL 1.12, the last with a PPO, computes on one small batch.

    pip install --no-deps --target FOLDER trl==1.12.0
    PYTHONPATH=FOLDER python tests/rl/make_trl_numbers.py

The arithmetic stands inside `PPOTrainer.train`, so its own lines are taken from the source and run on the batch.
"""

import inspect
import json
import math
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl.experimental.ppo import ppo_trainer

assert trl.__version__ == "1.12.0", trl.__version__
EOS, PAD, WIDTH = 2, 0, 9
SETTINGS: dict[str, Any] = {
    "kl_coef": 0.05, "kl_estimator": "k1", "missing_eos_penalty": 1.0, "gamma": 1.0, "lam": 0.95, "cliprange": 0.2,
    "cliprange_value": 0.2, "vf_coef": 0.1,
}  # fmt: skip


def lines(start: str, end: str) -> str:
    """The statements of `train` from the line that contains `start` up to the one that contains `end`."""
    source = inspect.getsource(ppo_trainer.PPOTrainer.train)
    begin = source.rindex("\n", 0, source.index(start)) + 1
    return textwrap.dedent(source[begin : source.rindex("\n", 0, source.index(end, begin)) + 1])


def main() -> None:
    """Run TRL's lines and write inputs and outputs."""
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)

    lengths = [4, 1, 7, 5, 3]  # all shorter than WIDTH: TRL puts the score elsewhere where there is no room
    ended = [True, True, False, True, False]
    responses = torch.full((5, WIDTH), PAD)
    for i, (length, has_eos) in enumerate(zip(lengths, ended, strict=True)):
        responses[i, :length] = 5
        if has_eos:
            responses[i, length - 1] = EOS
    logprobs, new = -normal(1.0).abs() - 0.5, normal(0.3)
    inputs = {
        "lengths": lengths, "ended": ended, "logprobs": logprobs.tolist(), "new_logprobs": (logprobs + new).tolist(),
        "ref_logprobs": (logprobs + normal(0.3)).tolist(), "values": normal(1.0).tolist(),
        "new_values": normal(1.0).tolist(), "scores": normal(1.0)[:, 0].tolist(),
    }  # fmt: skip
    outputs = {}
    for whiten_rewards in (False, True):
        values: dict[str, Any] = vars(ppo_trainer) | {
            "args": SimpleNamespace(**SETTINGS, whiten_rewards=whiten_rewards),
            "self": SimpleNamespace(
                args=SimpleNamespace(**SETTINGS), processing_class=SimpleNamespace(eos_token_id=EOS)
            ),
            "postprocessed_responses": responses, "responses": responses,
            "sequence_lengths": torch.tensor(lengths) - 1, "empty_cache": lambda: None,
        }  # fmt: skip
        values |= {
            name: torch.tensor(inputs[name], dtype=torch.float64)
            for name in ("logprobs", "ref_logprobs", "values", "scores")
        }
        exec(lines("# Response Processing 3", "# Do multiple epochs"), values)
        ours = {name: values[name].tolist() for name in ("rewards", "advantages", "returns")}
        everything = slice(None)
        new_logprobs = torch.tensor(inputs["new_logprobs"], dtype=torch.float64, requires_grad=True)
        vpred = torch.tensor(inputs["new_values"], dtype=torch.float64, requires_grad=True)
        values |= {
            "micro_batch_inds": everything, "mb_logprobs": values["logprobs"], "mb_values": values["values"],
            "mb_return": values["returns"], "mb_advantage": values["advantages"], "vpred_temp": vpred[..., None],
            "mb_responses": responses, "context_length": 1,
        }  # fmt: skip
        values["new_logprobs"] = torch.masked_fill(new_logprobs, values["padding_mask"], 1.0)
        values["vpred"] = torch.masked_fill(vpred, values["padding_mask_p1"], 0)
        exec(lines("vpredclipped = torch.clamp", "accelerator.backward(loss)"), values)
        values["loss"].backward()
        ours |= {name: values[name].item() for name in ("pg_loss", "vf_loss", "loss")}
        ours |= {"policy_gradient": new_logprobs.grad.tolist(), "value_gradient": vpred.grad.tolist()}
        outputs["whitened_rewards" if whiten_rewards else "plain_rewards"] = ours
    assert all(math.isfinite(outputs[name]["loss"]) for name in outputs)
    numbers = {"settings": SETTINGS, "inputs": inputs, "outputs": outputs}
    path = Path(__file__).parent / "trl_1_12_ppo.json"
    path.write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
