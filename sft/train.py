"""Supervised fine-tuning: the base model learns to answer as the demonstrations do.

TRL's SFTTrainer does the work. What is ours: the conversations are tokenised by `accord.chat`, so that the loss
covers exactly the assistant's turns with their EOS; every dropped row is counted; the run continues after a kill.

    accord sft configs/demo.yaml
"""

import functools

from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig as TrlSFTConfig
from trl import SFTTrainer

from accord.config import check_trainer_arguments
from accord.data.config import DataConfig
from accord.data.rows import Rows, open_data
from accord.models.adapters import peft_config
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.runs import Run, Runs
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
from sft.config import SFTConfig
from sft.data import open_data_run, prepare

OURS = (
    *SET_BY_ACCORD,
    "packing",
    "padding_free",
    "dataset_kwargs",
    "train_sampling_strategy",
    "assistant_only_loss",
    "completion_only_loss",
    "load_best_model_at_end",
)
check_arguments = functools.partial(check_trainer_arguments, "sft.trainer", target=TrlSFTConfig, ours=OURS)


def fine_tune(
    config: SFTConfig,
    runs: Runs,
    base: Model,
    demonstrations: Rows | None = None,
    heldout: Rows | None = None,
    data: DataConfig | None = None,
) -> Run:
    """Fine-tune `base` on the demonstrations; returns the finished run, whose `model/` is the policy.

    Args:
        config: see `SFTConfig`.
        runs: where the run is kept.
        base: the model to start from.
        demonstrations: rows in place of the files that `config` names.
        heldout: rows in place of its held-out file.
        data: how files are read.

    Raises:
        DataError: a demonstration file is bad, or all its rows are too long.
        UsageError: bad trainer arguments, or a base model without what training needs.
    """
    read = data or DataConfig()
    config = open_data(config, runs, read, demonstrations=demonstrations, heldout=heldout)
    tokenizer = load_tokenizer(base)
    prepared = prepare(config, runs, tokenizer, read)
    with runs.begin("sft", config, {"base": base, "data": prepared}) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        rows = open_data_run(prepared)

        # build
        arguments = trainer_arguments(config, run, evaluate=rows.heldout is not None)
        arguments |= {"padding_free": config.packing, "dataset_kwargs": {"skip_prepare_dataset": True}}
        arguments["max_length"] = None  # no row is longer
        if config.curriculum:
            arguments["train_sampling_strategy"] = "sequential"
        callbacks: list[TrainerCallback] = []
        if config.early_stopping_evaluations is not None:
            arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
            arguments["save_steps"] = arguments["eval_steps"]
            callbacks.append(EarlyStoppingCallback(config.early_stopping_evaluations))
        trainer = SFTTrainer(
            model=load_policy(base, base_dtype(config), **quantization(config.lora)),
            args=build_arguments("sft", TrlSFTConfig, arguments),
            train_dataset=rows.train,
            eval_dataset=rows.heldout,
            processing_class=tokenizer,
            peft_config=peft_config(base, config.lora, "CAUSAL_LM"),
            callbacks=callbacks,
        )

        # loop
        train_in_run(trainer, run, "sft", evaluate_first=rows.heldout is not None)

        # save
        save_trained_model(
            trainer, tokenizer, run, load_policy(base) if config.lora else None,
            save_dtype(config.save_dtype, base),
        )  # fmt: skip
        metrics = {
            "demonstrations": prepared.metrics["rows_an_epoch"],
            "heldout_demonstrations": prepared.metrics["heldout_rows"],
            "updates": trainer.state.global_step,
            "train_loss": mean_loss(trainer),
            "heldout_loss_before": logged(trainer, "eval_loss", first=True),
            "heldout_loss": trainer.state.best_metric or logged(trainer, "eval_loss"),
        }
        run.finish(metrics, prepared.record.dropped)
    return run
