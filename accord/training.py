"""How a TRL trainer works inside a run: its shared arguments, checkpoints, metric rows and progress.

The trainers of sft/, reward/ and rl/ differ in data and loss; everything here is what they have in common.
"""

import contextlib
import json
import logging
import math
import shutil
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import datasets
import torch
import transformers
from transformers import Trainer, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerState

from accord import parallel
from accord.compute import sharding
from accord.compute.checkpoints import check_continues, has_shards
from accord.config import LoraConfig
from accord.errors import AccordError, UsageError
from accord.models.adapters import fit_to_base, takes_from_base
from accord.models.files import stored_dtype
from accord.models.references import Model
from accord.models.saving import readable_as_neighbours, write_model
from accord.optimizers import check_optimizer
from accord.progress import EveryFewSeconds
from accord.runs import Run
from accord.terminal import say
from accord.training_config import SaveDtype, TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTICES_FROM = (
    r"(accelerate|accord|bitsandbytes|datasets|eval|feedback|huggingface_hub|peft|reward|rl|sft|torch|transformers|trl)"
    r"(\.|$)"
)
"""The modules whose warnings are notices: of libraries, and of our own calls of them."""
SET_BY_ACCORD = (
    "output_dir", "num_train_epochs", "learning_rate", "warmup_steps", "warmup_ratio", "gradient_accumulation_steps",
    "per_device_train_batch_size", "per_device_eval_batch_size", "max_length", "bf16", "fp16", "use_cpu", "save_steps",
    "save_strategy", "save_total_limit", "eval_steps", "eval_strategy", "eval_on_start", "seed", "logging_steps",
    "logging_strategy", "logging_nan_inf_filter", "disable_tqdm", "trust_remote_code", "push_to_hub",
    "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "save_only_model", "max_steps",
    "deepspeed", "fsdp", "fsdp_config",
)  # fmt: skip
"""Trainer arguments that follow from accord's own settings, and may therefore not stand under `trainer:`."""
START = "start"
"""Beside the checkpoints: adapters before the first update, where they were taken from the base's weights."""


def trainer_arguments(config: TrainingConfig, run: Run | None, evaluate: bool) -> dict[str, Any]:
    """The keyword arguments for any TRL configuration class, from ours.

    Args:
        config: of the stage.
        run: where checkpoints go; None for arguments that nobody trains with.
        evaluate: whether there are held-out rows.

    Raises:
        UsageError: `rows_per_update` is no multiple of `rows_per_pass` times the number of processes, or what shards
            weights or the optimiser is not installed.
    """
    sharding.prepare()
    check_optimizer(config.optimizer)
    rows_per_pass = config.rows_at_a_time(parallel.count())
    arguments: dict[str, Any] = {
        "output_dir": str(run.path / "checkpoints") if run else "unused",
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup_fraction,
        "gradient_accumulation_steps": config.passes_per_update(parallel.count()),
        "per_device_train_batch_size": rows_per_pass,
        "per_device_eval_batch_size": rows_per_pass,
        "max_length": config.max_sequence_tokens,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": computes_in_bfloat16(config),
        "save_strategy": "steps",
        "save_steps": config.checkpoint_every_updates,
        "save_total_limit": 2,
        "restore_callback_states_from_checkpoint": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log an earlier average in place of a NaN
        "seed": config.seed,
        "disable_tqdm": not sys.stderr.isatty(),
        "gradient_checkpointing": False,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if config.optimizer == "adamw_8bit":
        arguments["optim"] = "adamw_bnb_8bit"
    if parallel.count() > 1:
        arguments["log_level_replica"] = "error"  # the others would say what the first one does not
    if evaluate:
        arguments["eval_strategy"] = "steps"
        # The trainer evaluates after the last update in any case.
        arguments["eval_steps"] = config.evaluate_every_updates or sys.maxsize
    return {**arguments, **config.trainer}


ArgumentsT = TypeVar("ArgumentsT")


def build_arguments(section: str, target: type[ArgumentsT], arguments: Mapping[str, Any]) -> ArgumentsT:
    """TRL's configuration object.

    Raises:
        UsageError: it refuses a value that came from the `trainer:` mapping of `section`, or a tracker that the mapping
            names is unknown or not installed.
    """
    try:
        built: Any = target(**arguments)
        for callback in get_reporting_integration_callbacks(built.report_to):
            callback()  # as the trainer will: it raises where the tracker's package is missing
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"{section}.trainer: {' '.join(str(error).split())[:300]}") from error
    sharding.take_models_for_whole()
    return cast("ArgumentsT", built)


class Precision(Protocol):
    """The part of a training stage's configuration that decides in which dtypes it computes."""

    @property
    def precision(self) -> Literal["auto", "float32", "bfloat16"]:
        """See `TrainingConfig`."""
        ...

    @property
    def lora(self) -> LoraConfig | None:
        """See `TrainingConfig`."""
        ...


def computes_in_bfloat16(config: Precision) -> bool:
    """Whether this machine trains in bfloat16 under this configuration."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "amx_bf16" in cpu.read_text()


def base_dtype(config: Precision) -> torch.dtype:
    """The dtype to load a model in for training: frozen weights may be bfloat16, trained ones are float32."""
    return torch.bfloat16 if computes_in_bfloat16(config) and config.lora is not None else torch.float32


def quantization(lora: LoraConfig | None) -> dict[str, Any]:
    """The options that load a base in 4 bit for QLoRA; empty without it.

    Raises:
        UsageError: bitsandbytes is missing or does not work on this machine.
    """
    if lora is None or not lora.quantize_base:
        return {}
    try:
        import bitsandbytes as bnb

        weight, state = bnb.functional.quantize_4bit(torch.randn(64, 64), quant_type="nf4")
        bnb.functional.dequantize_4bit(weight, state)
    except Exception as error:
        raise UsageError(
            f"lora.quantize_base needs a bitsandbytes that works on this machine ({type(error).__name__}: {error}); "
            "`accord doctor` says more, or set quantize_base to false"
        ) from None
    return {
        "quantization_config": transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    }


def train_in_run(trainer: Trainer, run: Run, label: str, evaluate_first: bool = False) -> None:
    """Train, from the last whole checkpoint if there is one; metric rows go to the run's metrics.jsonl.

    Args:
        trainer: ready to train.
        run: where checkpoints and rows go.
        label: the stage, at the beginning of every line of progress.
        evaluate_first: take the held-out loss before the first update, too.

    Raises:
        AccordError: the loss became NaN or infinite.
        ProcessLostError: another process of the run ended.
        UsageError: DeepSpeed wrote the checkpoint in other processes than these.
    """
    folder = run.path / "checkpoints"
    checkpoint = parallel.from_first(lambda: last_whole_checkpoint(folder))
    model: Any = trainer.model
    for weight in model.parameters():
        if weight.requires_grad:  # for QLoRA, TRL rounds even what is trained to bfloat16
            weight.data = weight.data.float()
    if takes_from_base(model) and parallel.is_first():
        model.save_pretrained(folder / START)
    run.record.hardware["training_precision"] = "bfloat16" if trainer.args.bf16 else "float32"
    run.record.hardware |= {"processes": parallel.count(), "sharding": parallel.sharding()}
    # A continued run has this row already, from before the kill.
    trainer.args.eval_on_start = evaluate_first and checkpoint is None
    trainer.remove_callback(PrinterCallback)
    rows = _RunCallback(run, label)
    trainer.add_callback(rows)
    if checkpoint is not None:
        check_continues(checkpoint)
        if parallel.is_first():
            say(f"{label}: continues from {checkpoint.name}")
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        internals: Any = trainer
        internals._total_train_tokens = _tokens_seen(state)  # TRL counts from 0 after a restart
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            # Trained to the end and killed before the model was saved; the trainer would add an update.
            best = trainer.args.load_best_model_at_end and state.best_global_step
            internals._load_from_checkpoint(str(folder / f"checkpoint-{best}" if best else checkpoint))
            trainer.state = state
            rows.write(state.log_history, "w")
            sharding.take_models_for_whole()
            return
    if checkpoint is not None and parallel.sharding() == "fsdp2" and not has_shards(checkpoint):
        trainer._load_from_checkpoint(str(checkpoint))
    try:
        with parallel.noticing_losses():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception:
        if parallel.is_first():
            last_whole_checkpoint(folder)  # removes what a full disk left half-written
        raise
    finally:
        sharding.take_models_for_whole()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones, left by a kill, are removed.

    The trainer writes trainer_state.json last, so a checkpoint is whole if that file can be read.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(checkpoints):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
            return checkpoint
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
    return None


def save_trained_model(
    trainer: Trainer,
    tokenizer: "PreTrainedTokenizerBase",
    run: Run,
    base: "PreTrainedModel | None",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `model/`: whole weights with tokenizer, whatever was trained; and `adapter/`, in float32, for LoRA.

    Where several processes share the run, all call it, and the first one writes.

    Args:
        trainer: the trainer after training.
        tokenizer: saved beside the weights.
        run: the run to write to.
        base: for LoRA, the base in float32, onto which the adapter is merged (the trained copy of the base may be
            rounded to bfloat16 or quantised to 4 bit); None for full fine-tuning.
        dtype: of the whole weights, from `save_dtype`.
    """
    model = sharding.whole_model(trainer)
    if parallel.is_first():
        save_model(model, tokenizer, run, base, dtype)


def save_model(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    run: Run,
    base: "PreTrainedModel | None",
    dtype: torch.dtype = torch.float32,
) -> None:
    """The same for a model: its adapter "default" is the one that is saved."""
    if base is not None:
        import peft

        shutil.rmtree(run.path / "adapter", ignore_errors=True)
        model.save_pretrained(run.path / "adapter", selected_adapters=["default"])
        if takes_from_base(model):
            fit_to_base(run.path / "adapter", run.path / "checkpoints" / START)
        readable_as_neighbours(run.path / "adapter")
        model = peft.PeftModel.from_pretrained(base, str(run.path / "adapter")).merge_and_unload()
    write_model(model, tokenizer, run.path / "model", dtype)


def save_dtype(setting: SaveDtype, base: Model) -> torch.dtype:
    """The dtype to save a model in that was trained from `base`."""
    found: torch.dtype = getattr(torch, stored_dtype(base.folder) if setting == "auto" else setting)
    return found


def logged(trainer: Trainer, key: str, first: bool = False) -> float | None:
    """The last (or first) logged value of a key; None where it was never logged."""
    values = [row[key] for row in trainer.state.log_history if row.get(key) is not None]
    return float(values[0 if first else -1]) if values else None


def mean_loss(trainer: Trainer) -> float:
    """The mean training loss over all updates; the trainer's own counts only those since the last restart."""
    return statistics.fmean(row["loss"] for row in trainer.state.log_history if "loss" in row)


def _tokens_seen(state: TrainerState) -> int:
    return next((int(row["num_tokens"]) for row in reversed(state.log_history) if "num_tokens" in row), 0)


class _RunCallback(TrainerCallback):
    """Writes metric rows to the run and, where no progress bar is possible, a line now and then."""

    def __init__(self, run: Run, label: str):
        self.run = run
        self.label = label
        self.lines = EveryFewSeconds()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # After a kill, rows beyond the checkpoint are made again: start from the rows the checkpoint knows.
        self.write(state.log_history, "w")
        if parallel.rank():  # each process draws a dropout of its own
            torch.manual_seed(args.seed + parallel.rank())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "train_runtime" in row:  # the trainer's summary, which covers only the time since the last restart
            return
        self.write([row], "a")
        for key in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(row.get(key, 0.0)):
                raise AccordError(
                    f"{self.label}: {key} became {row[key]} at update {state.global_step}; lower the learning rate "
                    f"(rows are in {self.run.path / 'metrics.jsonl'})"
                )
        is_last = state.global_step == state.max_steps
        if parallel.is_first() and args.disable_tqdm and "loss" in row and self.lines.is_due(at_once=is_last):
            figure = "reward" if "reward" in row else "loss"  # a loss of RLOO or GRPO says nothing
            say(f"{self.label}: update {state.global_step}/{state.max_steps}, {figure} {row[figure]:.3f}")

    def write(self, rows: Sequence[Mapping[str, Any]], mode: str) -> None:
        if not parallel.is_first():
            return
        with (self.run.path / "metrics.jsonl").open(mode) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' notices, which users cannot act on, out of our output; errors still show.

    Warnings of other modules, a user's reward function among them, show as ever. Afterwards all is as it was before.
    """
    level = transformers.utils.logging.get_verbosity()
    bars_were_on = not datasets.utils.are_progress_bars_disabled()
    loggers = {
        logging.getLogger(name): logging.getLogger(name).level for name in ("accelerate", "bitsandbytes")
    }
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for category in (FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=NOTICES_FROM)
        try:
            yield
        finally:
            transformers.utils.logging.set_verbosity(level)
            for logger, before in loggers.items():
                logger.setLevel(before)
            if bars_were_on:
                datasets.enable_progress_bars()
