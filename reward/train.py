"""The reward model: learns from pairs which of two answers people prefer.

TRL's RewardTrainer fits the Bradley-Terry loss -log sigmoid(r_chosen - r_rejected). What is ours: pairs count by their
`weight`, which says how far their annotators can be relied on; rows are tokenised by `accord.chat`, so that the
score is read at the answer's EOS; pairs over the length limit are counted instead of silently filtered; prompts never
straddle the split; the held-out accuracy comes with its interval and with the accuracy of preferring the longer, and
the shorter, answer.

    accord reward configs/demo.yaml
"""

import functools
import math
from typing import Any

import torch
from statsmodels.stats.proportion import proportion_confint
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from accord.config import check_trainer_arguments
from accord.errors import DataError
from accord.models import Model, load_reward_model, load_tokenizer, peft_config
from accord.records import Preference, read_jsonl
from accord.runs import DataFile, Run, Runs
from accord.training import (
    SET_BY_ACCORD,
    base_dtype,
    build_arguments,
    logged,
    mean_loss,
    quantization,
    quiet_libraries,
    save_trained_model,
    train_in_run,
    trainer_arguments,
)
from reward.config import RewardConfig
from reward.data import drop_too_long, encode_pairs, split_by_prompt
from reward.score import score

check_arguments = functools.partial(
    check_trainer_arguments,
    "reward.trainer",
    target=TrlRewardConfig,
    ours=(*SET_BY_ACCORD, "center_rewards_coefficient"),
)


def train_reward_model(config: RewardConfig, runs: Runs, base: Model, preferences: Run | DataFile) -> Run:
    """Fit a reward model that starts from `base`; returns the finished run, whose `model/` scores conversations.

    Args:
        config: see `RewardConfig`.
        runs: where the run is kept.
        base: usually the policy after SFT.
        preferences: a finished feedback run, or a file of preferences.

    Raises:
        DataError: a bad file, or fewer pairs than `minimum_pairs`.
    """
    with runs.begin("reward", config, {"base": base, "preferences": preferences}) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        path = preferences.output("preferences.jsonl") if isinstance(preferences, Run) else preferences.path
        tokenizer = load_tokenizer(base)
        rows = read_jsonl(path, Preference)
        kept, too_long = drop_too_long(tokenizer, rows, config.max_sequence_tokens)
        train, heldout = split_by_prompt(kept, config.heldout_fraction)
        if len(train) < config.minimum_pairs or not heldout:
            raise DataError(
                f"{path}: leaves {len(train)} pairs to train on and {len(heldout)} held out; at least "
                f"{config.minimum_pairs} and 1 are needed, so collect more preferences"
            )

        # build
        arguments = trainer_arguments(config, run, evaluate=True)
        arguments["center_rewards_coefficient"] = config.centering_coefficient
        model = load_reward_model(base, base_dtype(config), **quantization(config.lora))
        initialise_head(model.score, config.seed)
        trainer = WeightedRewardTrainer(
            model=model,
            args=build_arguments("reward", TrlRewardConfig, arguments),
            train_dataset=encode_pairs(tokenizer, train),
            eval_dataset=encode_pairs(tokenizer, heldout),
            processing_class=tokenizer,
            data_collator=WeightedPairs(pad_token_id=tokenizer.pad_token_id),
            peft_config=peft_config(base, config.lora, "SEQ_CLS"),
        )

        # loop
        train_in_run(trainer, run, "reward")

        # save
        with quiet_libraries():  # the fresh head of the base is said to be untrained; the merge replaces it
            save_trained_model(trainer, tokenizer, run, load_reward_model(base) if config.lora else None)
        metrics = {
            "pairs": len(train),
            "updates": trainer.state.global_step,
            "train_loss": mean_loss(trainer),
            "heldout_loss": logged(trainer, "eval_loss"),
            **heldout_figures(Model("reward model", run.path / "model", ""), heldout),
        }
        run.finish(metrics, {"too_long": too_long})
    return run


class WeightedPairs(DataCollatorForPreference):
    """TRL's collator, with the pairs' `weight` [pairs]."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: D102
        weights = torch.tensor([example["weight"] for example in examples])
        return super().torch_call(examples) | {"weight": weights}


class WeightedRewardTrainer(RewardTrainer):
    """TRL's trainer, whose loss is the mean of weight * -log sigmoid(r_chosen - r_rejected) over a batch's pairs."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        self._signature_columns = list(dict.fromkeys([*columns, "weight"]))  # type: ignore[assignment]

    def compute_loss(  # noqa: D102
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weight = inputs.pop("weight")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        # TRL's loss counts every pair once, and adds the centring term, which stays as it is
        loss = loss + ((weight - 1) * -torch.nn.functional.logsigmoid(chosen - rejected)).mean()
        return (loss, outputs) if return_outputs else loss


def initialise_head(head: Any, seed: int) -> None:
    """Draw the scalar head from N(0, 1 / (d + 1)), d the hidden size, so that first rewards are of order one.

    `head` is a `torch.nn.Linear` with one output. Source: Stiennon et al. 2020, https://arxiv.org/abs/2009.01325.
    """
    deviation = 1 / math.sqrt(head.in_features + 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * deviation)


def heldout_figures(reward_model: Model, rows: list[Preference]) -> dict[str, float | int]:
    """Accuracy on held-out pairs with its 95% Wilson interval, beside what length alone would score.

    The interval takes pairs as independent; pairs of one prompt are not quite, so it is a little narrow.
    """
    pairs = [([*row.prompt, *row.chosen], [*row.prompt, *row.rejected]) for row in rows]
    scores = score(reward_model, [conversation for pair in pairs for conversation in pair])
    chosen, rejected = scores[::2], scores[1::2]
    right = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    low, high = proportion_confint(right, len(rows), alpha=0.05, method="wilson")
    longer = sum(len(row.chosen[-1].content) > len(row.rejected[-1].content) for row in rows)
    shorter = sum(len(row.chosen[-1].content) < len(row.rejected[-1].content) for row in rows)
    return {
        "heldout_pairs": len(rows),
        "heldout_accuracy": right / len(rows),
        "heldout_accuracy_low": float(low),
        "heldout_accuracy_high": float(high),
        "prefer_longer_accuracy": longer / len(rows),
        "prefer_shorter_accuracy": shorter / len(rows),
        "mean_reward_margin": sum(c - r for c, r in zip(chosen, rejected, strict=True)) / len(rows),
    }
