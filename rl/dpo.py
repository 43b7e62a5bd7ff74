"""Direct preference optimisation: the policy learns from the pairs themselves, without a reward model in between.

TRL's DPOTrainer does the work, with the loss -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)) or
one of its variants (`DPOConfig.loss`). The reference is the policy before training. Its log-probabilities are computed
once, before the first update, and kept in a file below the runs folder: no second copy of the model is loaded, and
another run on the same reference and pairs reads them.

    accord dpo configs/demo.yaml
"""

import functools
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig as TrlDPOConfig
from trl import DPOTrainer

from accord import parallel
from accord.compute.passes import Passes
from accord.compute.sharding import whole_on_device
from accord.config import check_trainer_arguments
from accord.data.rows import Judgements, open_judgements
from accord.errors import DataError
from accord.models.adapters import peft_config
from accord.models.loading import check_can_be_trained, load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Preference, read_jsonl
from accord.runs import Run, Runs, Source, file_of
from accord.training import (
    SET_BY_ACCORD,
    base_dtype,
    build_arguments,
    logged,
    mean_loss,
    quantization,
    quiet_libraries,
    save_dtype,
    save_trained_model,
    train_in_run,
    trainer_arguments,
)
from reward.choices import contradictory_pairs, repeated_pairs
from reward.data import split_by_prompt, usable_pairs
from rl import reference_cache
from rl.config import DPOConfig
from rl.pairs import encode_pairs

OURS = (
    *SET_BY_ACCORD, "beta", "loss_type", "loss_weights", "label_smoothing", "ld_alpha", "sync_ref_model",
    "precompute_ref_log_probs", "precompute_ref_batch_size",
)  # fmt: skip
check_arguments = functools.partial(check_trainer_arguments, "rl.trainer", target=TrlDPOConfig, ours=OURS)


def train_dpo(config: DPOConfig, runs: Runs, policy: Model, preferences: Judgements) -> Run:
    """Optimise `policy` on preferences; returns the finished run, whose `model/` is the new policy.

    Raises:
        DataError: a bad file, or no pair short enough.
    """
    preferences = open_judgements(preferences, runs)
    check_can_be_trained(policy)
    sources: dict[str, Source] = {"policy": policy, "preferences": preferences}
    with runs.begin("dpo", config, sources, shared=True) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        path = file_of(preferences, "preferences.jsonl")
        tokenizer = load_tokenizer(policy)
        rows = read_jsonl(path, Preference)
        kept, dropped = usable_pairs(tokenizer, rows, config.max_sequence_tokens)
        train, heldout = split_by_prompt(kept, config.heldout_fraction)
        if not train or not heldout:
            left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise DataError(
                f"{path}: leaves {len(train)} pairs to train on and {len(heldout)} held out, of "
                f"{len(rows)} ({left_out}); collect more preferences, or raise max_sequence_tokens"
            )

        # build
        arguments = trainer_arguments(config, run, evaluate=True) | {
            "beta": config.kl_coefficient, "loss_type": [config.loss], "label_smoothing": config.label_smoothing,
            "ld_alpha": config.length_desensitisation, "precompute_ref_log_probs": True,
        }  # fmt: skip
        quantized = config.lora is not None and config.lora.quantize_base
        made_by = [policy.digest, str(base_dtype(config)), arguments["bf16"], quantized]
        trainer = _Trainer(
            made_by=made_by,
            references=runs.root / reference_cache.FOLDER,
            model=load_policy(policy, base_dtype(config), **quantization(config.lora)),
            args=build_arguments("rl", TrlDPOConfig, arguments),
            train_dataset=encode_pairs(tokenizer, train),
            eval_dataset=encode_pairs(tokenizer, heldout),
            processing_class=tokenizer,
            peft_config=peft_config(policy, config.lora, "CAUSAL_LM"),
        )

        # loop
        train_in_run(trainer, run, "dpo", evaluate_first=True)

        # save
        save_trained_model(
            trainer, tokenizer, run, load_policy(policy) if config.lora and parallel.is_first() else None,
            save_dtype(config.save_dtype, policy),
        )  # fmt: skip
        metrics = {
            "pairs": len(train),
            "heldout_pairs": len(heldout),
            "contradictory_pairs": contradictory_pairs(kept)[0],
            "repeated_pairs": repeated_pairs(kept),
            "updates": trainer.state.global_step,
            "first_loss": logged(trainer, "loss", first=True),
            "train_loss": mean_loss(trainer),
            "heldout_loss": logged(trainer, "eval_loss"),
            "heldout_accuracy": logged(trainer, "eval_rewards/accuracies"),
            "heldout_reward_margin": logged(trainer, "eval_rewards/margins"),
            "heldout_chosen_log_probability_before": logged(trainer, "eval_logps/chosen", first=True),
            "heldout_chosen_log_probability": logged(trainer, "eval_logps/chosen"),
            "heldout_rejected_log_probability_before": logged(trainer, "eval_logps/rejected", first=True),
            "heldout_rejected_log_probability": logged(trainer, "eval_logps/rejected"),
        }
        run.finish(metrics, dropped)
    return run


class _Trainer(Passes, DPOTrainer):
    """Takes rows that `accord.chat` encoded, and keeps the reference's log-probabilities where the next run finds them.

    TRL keeps them, too, but in a temporary folder, and its key leaves out the precision and `ld_alpha`.
    """

    def __init__(self, made_by: list[Any], references: Path, **arguments: Any):
        self._made_by = made_by  # reference and precision
        self._references = references
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The pairs with the columns `ref_chosen_logps` and `ref_rejected_logps` [pairs], in nats."""

        def compute(rows: Any) -> tuple[list[float], list[float]]:
            batch = self._prepare_inputs(self.data_collator(rows))
            chosen, rejected = self.compute_ref_log_probs(self.model, batch)
            return chosen.tolist(), rejected.tolist()

        with whole_on_device(self):
            found = reference_cache.kept_or_computed(
                self._references, [self._made_by, self.ld_alpha], list(dataset), batch_size,
                f"dpo: reference log-probabilities ({name})", compute,
            )  # fmt: skip
        chosen_column, rejected_column = (list(column) for column in zip(*found, strict=True))
        return dataset.add_column("ref_chosen_logps", chosen_column).add_column(
            "ref_rejected_logps", rejected_column
        )
