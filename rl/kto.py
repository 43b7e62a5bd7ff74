"""Kahneman-Tversky optimisation: the policy learns from answers that are desirable or not, without pairs.

TRL's KTOTrainer does the work. With h the log-ratio of policy and reference and z the KL between them, the loss of a
desirable answer is w (1 - sigmoid(beta (h - z))), that of another one w' (1 - sigmoid(beta (z - h))). z is estimated in
each pass from prompts with another row's answer. What is ours: rows are tokenised by `accord.chat`, those of one prompt
are kept apart, and the reference's log-probabilities are computed once and kept, as for DPO.

    accord kto configs/kto.yaml
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import KTOConfig as TrlKTOConfig
from trl import KTOTrainer

from accord import parallel
from accord.bundled import data_path
from accord.compute.passes import Passes
from accord.compute.sharding import whole_on_device
from accord.config import check_trainer_arguments
from accord.data.rows import Judgements, Rows, open_data, open_judgements
from accord.errors import DataError, UsageError
from accord.models.adapters import peft_config
from accord.models.loading import check_can_be_trained, load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import UnpairedFeedback
from accord.runs import DataFile, Run, Runs, Source
from accord.terminal import say
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
from reward.data import split_by_prompt
from rl import reference_cache
from rl.config import KTOConfig
from rl.unpaired import contradictory, drop_too_long_answers, encode_unpaired, read_feedback, spread_out

OURS = (
    *SET_BY_ACCORD, "beta", "loss_type", "desirable_weight", "undesirable_weight", "train_sampling_strategy",
    "sync_ref_model", "precompute_ref_log_probs", "precompute_ref_batch_size",
)  # fmt: skip
check_arguments = functools.partial(check_trainer_arguments, "rl.trainer", target=TrlKTOConfig, ours=OURS)
ROWS = "rows"
"""The numbers of desirable and undesirable rows in each pass, among TRL's figures."""
BALANCE = (1.0, 4 / 3)
"""Of the weighted numbers of desirable and undesirable rows, as the paper advises."""


def train_kto(
    config: KTOConfig, runs: Runs, policy: Model, preferences: Judgements | None = None,
    feedback: Rows | None = None,
) -> Run:  # fmt: skip
    """Optimise `policy` on answers that are desirable or not; returns the finished run, with `model/`, the new policy.

    Args:
        config: see `KTOConfig`.
        runs: where the run is kept.
        policy: what is optimised; the reference, too.
        preferences: whose answers are used where the configuration names no file.
        feedback: rows in place of the file that `config` names.

    Raises:
        UsageError: there is neither feedback nor preferences.
        DataError: a bad file, or too few rows are short enough.
    """
    config = open_data(config, runs, feedback=feedback)
    sources: dict[str, Source] = {"policy": policy}
    source: Run | DataFile | None = None
    if config.feedback:
        sources["feedback"] = DataFile(data_path(config.feedback))
    elif preferences is not None:
        source = sources["preferences"] = open_judgements(preferences, runs)
    else:
        raise UsageError("kto needs answers to learn from; name a file in rl.feedback, or give preferences")
    check_can_be_trained(policy)
    with runs.begin("kto", config, sources, shared=True) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        tokenizer = load_tokenizer(policy)
        rows, dropped = read_feedback(config, source)
        kept, dropped["too_long"] = drop_too_long_answers(tokenizer, rows, config.max_sequence_tokens)
        train, heldout = split_by_prompt(kept, config.heldout_fraction)
        if min(len(train), len(heldout)) < 2:
            raise DataError(
                f"the feedback leaves {len(train)} answers to train on and {len(heldout)} held out, and each needs 2; "
                f"{dropped['too_long']} were longer than max_sequence_tokens; collect more or raise it"
            )
        desirable = sum(row.label for row in train)
        advice = balance_advice(desirable, len(train) - desirable, config)
        if advice and parallel.is_first():
            say(f"kto: {advice}")

        # build
        arguments = trainer_arguments(config, run, evaluate=True) | {
            "beta": config.kl_coefficient, "desirable_weight": config.desirable_weight,
            "undesirable_weight": config.undesirable_weight, "precompute_ref_log_probs": True,
        }  # fmt: skip
        quantized = config.lora is not None and config.lora.quantize_base
        made_by = ["kto", policy.digest, str(base_dtype(config)), arguments["bf16"], quantized]

        def encode(part: list[UnpairedFeedback]) -> Dataset:
            rows_per_pass = arguments["per_device_train_batch_size"]
            return encode_unpaired(tokenizer, spread_out(part, config.seed), rows_per_pass)

        trainer = _Trainer(
            made_by=made_by,
            references=runs.root / reference_cache.FOLDER,
            model=load_policy(policy, base_dtype(config), **quantization(config.lora)),
            args=build_arguments("rl", TrlKTOConfig, arguments),
            train_dataset=encode(train),
            eval_dataset=encode(heldout),
            processing_class=tokenizer,
            peft_config=peft_config(policy, config.lora, "CAUSAL_LM"),
        )

        # loop
        train_in_run(trainer, run, "kto", evaluate_first=True)

        # save
        save_trained_model(
            trainer, tokenizer, run, load_policy(policy) if config.lora and parallel.is_first() else None,
            save_dtype(config.save_dtype, policy),
        )  # fmt: skip
        last, first = functools.partial(logged, trainer), functools.partial(logged, trainer, first=True)
        metrics = {
            "desirable_rows": desirable,
            "undesirable_rows": len(train) - desirable,
            "heldout_rows": len(heldout),
            "contradictory_rows": contradictory(kept),
            "updates": trainer.state.global_step,
            "first_loss": first("loss"),
            "train_loss": mean_loss(trainer),
            "heldout_loss": last("eval_loss"),
            "heldout_reward_margin": last("eval_rewards/margins"),
            "heldout_kl_nats": last("eval_kl"),
            "heldout_desirable_log_probability_before": first("eval_logps/chosen"),
            "heldout_desirable_log_probability": last("eval_logps/chosen"),
            "heldout_undesirable_log_probability_before": first("eval_logps/rejected"),
            "heldout_undesirable_log_probability": last("eval_logps/rejected"),
        }
        run.finish(metrics, dropped)
    return run


def balance_advice(desirable: int, undesirable: int, config: KTOConfig) -> str | None:
    """What to set where the weighted numbers of rows are out of balance; None where they are in it, or one is 0."""
    if not desirable or not undesirable:
        return None
    weighted = config.undesirable_weight * undesirable / desirable
    ratio = config.desirable_weight / weighted
    if BALANCE[0] <= round(ratio, 6) <= round(BALANCE[1], 6):
        return None
    return (
        f"{desirable} desirable and {undesirable} undesirable answers weigh {ratio:.2f} : 1, and the paper advises "
        f"1 : 1 to 4 : 3; set rl.desirable_weight between {weighted * BALANCE[0]:.2f} and {weighted * BALANCE[1]:.2f}"
    )


class _Trainer(Passes, KTOTrainer):
    """Takes rows that `accord.chat` encoded, keeps the reference's log-probabilities, and counts rows, not batches.

    TRL's figures are means over batches, which differ in how many of their rows are desirable.
    """

    def __init__(self, made_by: list[Any], references: Path, **arguments: Any):
        self._made_by = made_by  # reference and precision
        self._references = references
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The rows with `ref_logps` of their answer and `ref_KL_logps` of the other one [rows], in nats."""

        def compute(rows: Sequence[Any]) -> tuple[list[float], list[float]]:
            batch = self._prepare_inputs(self.data_collator(list(rows)))
            own, other = self.compute_ref_log_probs(self.model, batch)
            return own.tolist(), other.tolist()

        with whole_on_device(self):
            found = reference_cache.kept_or_computed(
                self._references, [self._made_by], list(dataset), batch_size,
                f"kto: reference log-probabilities ({name})", compute,
            )  # fmt: skip
        own_column, other_column = (list(column) for column in zip(*found, strict=True))
        return dataset.add_column("ref_logps", own_column).add_column("ref_KL_logps", other_column)

    def _mode(self) -> str:
        model: Any = self.model
        return "train" if model.training else "eval"

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        figures: Any = self._metrics[self._mode()]
        desirable = int(inputs["label"].sum())
        for kind, count in (("chosen", desirable), ("rejected", len(inputs["label"]) - desirable)):
            if count:  # as TRL adds its figures
                figures[f"{ROWS}/{kind}"].append(count)
        return super()._compute_loss(model, inputs, return_outputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL does it, with means over rows."""
        mode = self._mode()
        figures: Any = self._metrics[mode]
        for kind in ("chosen", "rejected"):
            counts = figures.pop(f"{ROWS}/{kind}", [])
            for name in (f"rewards/{kind}", f"logps/{kind}"):
                if figures[name]:
                    total = sum(count * value for count, value in zip(counts, figures[name], strict=True))
                    figures[name] = [total / sum(counts)]
        if figures["rewards/chosen"] and figures["rewards/rejected"]:
            figures["rewards/margins"] = [figures["rewards/chosen"][0] - figures["rewards/rejected"][0]]
        for name in [name for name, values in figures.items() if not values]:
            del figures[name]
        super().log(logs, start_time)
