"""Supervised fine-tuning: the base model learns to answer as the demonstrations do.

TRL's SFTTrainer does the work. What is ours: the conversations are tokenised by `accord.chat`, so that the loss
covers exactly the assistant's turns with their EOS; every dropped row is counted; the run continues after a kill.

    accord sft configs/demo.yaml
"""

import functools
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig as TrlSFTConfig

from accord import parallel
from accord.compute.sharding import whole_on_device
from accord.config import check_trainer_arguments
from accord.data.config import DataConfig
from accord.data.rows import Rows, open_data
from accord.models.families import attention_for
from accord.models.loading import load_tokenizer
from accord.models.references import Model
from accord.runs import Run, Runs, Source
from accord.training import (
    SET_BY_ACCORD,
    build_arguments,
    logged,
    mean_loss,
    quiet_libraries,
    train_in_run,
    trainer_arguments,
)
from sft.adaptation import model_and_penalties, save_adapted
from sft.config import SFTConfig
from sft.data import open_data_run, prepare, prepare_retention
from sft.interpolation import keep_best, loss_on, weights_at_start
from sft.packed import PackedRows
from sft.trainer import Trainer
from sft.write_card import material, write_card

if TYPE_CHECKING:
    from accord.data.quality.held_out import HeldOut

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
NAMED = ("loss_type", "neftune_noise_alpha")
"""Further ones that have a setting of `sft`."""
check_arguments = functools.partial(
    check_trainer_arguments, "sft.trainer", target=TrlSFTConfig, ours=(*OURS, *NAMED)
)


def fine_tune(
    config: SFTConfig,
    runs: Runs,
    base: Model,
    demonstrations: Rows | None = None,
    heldout: Rows | None = None,
    retention: Rows | None = None,
    data: DataConfig | None = None,
    held_out: "HeldOut | None" = None,
) -> Run:
    """Fine-tune `base` on the demonstrations; returns the finished run, whose `model/` is the policy.

    Args:
        config: see `SFTConfig`.
        runs: where the run is kept.
        base: the model to start from.
        demonstrations: rows in place of the files that `config` names.
        heldout: rows in place of its held-out file.
        retention: rows in place of its `retention` file.
        data: how files are read, and what of them is left out.
        held_out: what must not be learned, for `data.drop`.

    Raises:
        DataError: a demonstration file is bad, or all its rows are too long.
        UsageError: bad trainer arguments, or a base model without what training needs.
    """
    read = data or DataConfig()
    config = open_data(
        config, runs, read, demonstrations=demonstrations, heldout=heldout, retention=retention
    )
    tokenizer = load_tokenizer(base)
    prepared = prepare(config, runs, tokenizer, read, held_out)
    sources: dict[str, Source] = {"base": base, "data": prepared}
    retention_run = prepare_retention(config, runs, tokenizer, read)
    if retention_run:
        sources["retention"] = retention_run
    with runs.begin("sft", config, sources, shared=True) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        rows = open_data_run(prepared)
        retained = open_data_run(retention_run).train if retention_run else None
        measured = material(config, rows, prepared, retained)

        # build
        arguments = trainer_arguments(config, run, evaluate=rows.heldout is not None)
        arguments |= {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        if config.curriculum:
            arguments["train_sampling_strategy"] = "sequential"
        callbacks: list[TrainerCallback] = []
        if config.early_stopping_evaluations is not None:
            arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
            arguments["save_steps"] = arguments["eval_steps"]
            callbacks.append(EarlyStoppingCallback(config.early_stopping_evaluations))
        arguments |= {"loss_type": config.loss, "neftune_noise_alpha": config.neftune_noise_alpha}
        model = model_and_penalties(config, base)
        if config.packing:
            model["model"].set_attn_implementation(attention_for(base.folder, "sdpa"))
        trainer = Trainer(
            **model,
            args=build_arguments("sft", TrlSFTConfig, arguments),
            train_dataset=rows.train,
            eval_dataset=rows.heldout,
            data_collator=PackedRows(tokenizer.pad_token_id) if config.packing else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        with whole_on_device(trainer):
            retained_before = loss_on(trainer, retained) if retained else None
        start = weights_at_start(trainer) if config.interpolate else {}

        # loop
        train_in_run(trainer, run, "sft", evaluate_first=rows.heldout is not None)
        chosen: dict[str, Any] = {}
        if config.interpolate:
            assert rows.heldout is not None
            chosen = keep_best(trainer, start, config.interpolate, rows.heldout, retained)
        if retained:
            chosen |= {"retention_loss_before": retained_before, "retention_loss": loss_on(trainer, retained)}

        # save
        save_adapted(config, trainer, tokenizer, run, base)
        metrics = {
            "demonstrations": prepared.metrics["rows_an_epoch"],
            "heldout_demonstrations": prepared.metrics["heldout_rows"],
            "updates": trainer.state.global_step,
            "train_loss": mean_loss(trainer),
            "heldout_loss_before": logged(trainer, "eval_loss", first=True),
            "heldout_loss": trainer.state.best_metric or logged(trainer, "eval_loss"),
        }

        # examine
        del trainer  # its memory is the card's now
        if config.card and parallel.is_first():
            run.record.dropped = prepared.record.dropped  # which the page shows
            metrics |= write_card(config, run, runs, base, tokenizer, measured)
        run.finish(metrics | chosen, prepared.record.dropped)
    return run
