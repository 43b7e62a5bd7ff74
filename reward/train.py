"""The reward model: learns from rankings which of several answers people prefer.

TRL's trainer does the training. What is ours: rankings with ties beside pairs, both by how far their annotators can be
relied on; a prompt computed once for all its answers; ensembles; rows tokenised by `accord.chat`, so that the score is
read at the answer's EOS; what is too long is counted instead of silently filtered; prompts never straddle the split;
and a report card in place of a number called accuracy.

    accord reward configs/demo.yaml
"""

import functools
import json
import logging
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig as TrlRewardConfig

from accord import parallel
from accord.bundled import data_path
from accord.chat.tokens import encode_conversation
from accord.compute.sharding import full, whole_model
from accord.config import check_trainer_arguments
from accord.data.rows import Judgements, open_data, open_judgements
from accord.errors import DataError
from accord.models.adapters import peft_config
from accord.models.loading import load_reward_model, load_tokenizer
from accord.models.references import Model
from accord.records import (
    Comparison,
    Demonstration,
    Message,
    Preference,
    conversation_id,
    question_id,
    read_jsonl,
)
from accord.runs import DataFile, Run, Runs, Source
from accord.text_files import write_atomically, write_jsonl
from accord.training import (
    SET_BY_ACCORD,
    base_dtype,
    build_arguments,
    logged,
    mean_loss,
    quantization,
    quiet_libraries,
    save_dtype,
    save_model,
    train_in_run,
    trainer_arguments,
)
from reward.choices import (
    PromptChoices,
    choices_from_pairs,
    choices_from_rankings,
    contradictory_pairs,
    repeated_pairs,
)
from reward.config import NO_RANKINGS, RewardConfig
from reward.data import (
    PreferenceData,
    drop_long_comparisons,
    encode_choices,
    read_preference_data,
    split_by_prompt,
    usable_pairs,
)
from reward.heldout import TRAINED_ON, longer_chosen_share, score_heldout
from reward.length import without_length
from reward.page.report import write_report
from reward.report_card import report_card
from reward.score import save_heads, score, set_heads
from reward.trainer import GroupRewardTrainer, initialise_heads

logger = logging.getLogger("accord.reward")

check_arguments = functools.partial(
    check_trainer_arguments,
    "reward.trainer",
    target=TrlRewardConfig,
    ours=(*SET_BY_ACCORD, "center_rewards_coefficient"),
)


def train_reward_model(
    config: RewardConfig, runs: Runs, base: Model, preferences: Judgements, previous: Model | None = None
) -> Run:
    """Fit a reward model that starts from `base`; returns the finished run, whose `model/` scores conversations.

    Args:
        config: see `RewardConfig`.
        runs: where the run is kept.
        base: usually the policy after SFT.
        preferences: a finished feedback run, a file of preferences or of comparisons, or such rows.
        previous: an earlier reward model, to compare with.

    Raises:
        DataError: a bad file, fewer pairs than `minimum_pairs`, or pairs that all contradict each other.
    """
    config, preferences = open_data(config, runs), open_judgements(preferences, runs)
    sources: dict[str, Source] = {"base": base, "preferences": preferences}
    if previous:
        sources["previous"] = previous
    if config.demonstrations:
        sources["demonstrations"] = DataFile(data_path(config.demonstrations))
    with runs.begin("reward", config, sources, shared=True) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        tokenizer = load_tokenizer(base)
        given = read_preference_data(preferences, with_reliability=config.loss == "plackett_luce")
        kept, dropped_pairs = usable_pairs(tokenizer, given.pairs, config.max_sequence_tokens)
        comparisons, long_comparisons = drop_long_comparisons(
            tokenizer, given.comparisons, config.max_sequence_tokens
        )
        demonstrations, long_demonstrations = _demonstrations(config, tokenizer)
        dropped = {
            **dropped_pairs, "comparisons_too_long": long_comparisons,
            "demonstrations_too_long": long_demonstrations, **given.dropped,
        }  # fmt: skip
        train, heldout = split_by_prompt(kept, config.heldout_fraction)
        name = preferences.id if isinstance(preferences, Run) else str(preferences.path)
        check_enough(name, train, heldout, config)
        heldout_prompts = {question_id(row.prompt) for row in heldout}
        compared = [each for each in comparisons if question_id(each.prompt) not in heldout_prompts]
        compared_heldout = [each for each in comparisons if question_id(each.prompt) in heldout_prompts]

        # build
        arguments = trainer_arguments(config, run, evaluate=True)
        model: Any = load_reward_model(base, base_dtype(config), new_head=True, **quantization(config.lora))
        if parallel.is_first():
            logger.info("reward: %s gets a new scalar head (score.weight)", base.reference)
        set_heads(model, torch.zeros(config.heads, model.score.in_features))
        initialise_heads(model.score, config.seed)
        groups, heldout_groups = (
            _groups(config, given, pairs, part)
            for pairs, part in ((train, compared), (heldout, compared_heldout))
        )
        if not groups or not heldout_groups:
            raise DataError(
                f"{name}: no comparison without a response over reward.max_sequence_tokens is left to train on or to "
                "hold out; raise it"
            )
        trainer = GroupRewardTrainer(
            model=model,
            args=build_arguments("reward", TrlRewardConfig, arguments),
            train_dataset=encode_choices(tokenizer, groups, config.heads, config.seed),
            eval_dataset=encode_choices(tokenizer, heldout_groups, config.heads),
            processing_class=tokenizer,
            peft_config=peft_config(base, config.lora, "SEQ_CLS"),
            centering_coefficient=config.centering_coefficient,
        )

        # loop
        train_in_run(trainer, run, "reward")

        # save
        _save(trainer, tokenizer, run, base, config, demonstrations)

        # examine
        metrics: dict[str, Any] = {}
        if parallel.is_first():
            pairs, scored = score_heldout(
                Model("reward model", run.path / "model", ""),
                tokenizer,
                heldout,
                compared_heldout,
                previous,
                runs,
            )
            card = report_card(
                pairs, scored, longer_chosen_share(tokenizer, train), config.slices,
                previous.reference if previous else None,
            )  # fmt: skip
            write_jsonl(run.path / "heldout.jsonl", pairs)
            if scored:
                write_jsonl(run.path / "heldout_comparisons.jsonl", scored)
            write_atomically(
                run.path / TRAINED_ON, json.dumps(sorted({conversation_id(g.prompt) for g in groups}))
            )
            write_atomically(run.path / "report_card.json", card.model_dump_json(indent=2) + "\n")
            run.record.dropped = dropped  # which the page shows
            write_report(run, runs)
            metrics = {
                "pairs": len(train),
                "prompts": len({conversation_id(group.prompt) for group in groups}),
                "contradictory_pairs": contradictory_pairs(kept)[0],
                "repeated_pairs": repeated_pairs(kept),
                "updates": trainer.state.global_step,
                "train_loss": mean_loss(trainer),
                "heldout_loss": logged(trainer, "eval_loss"),
                **card.metrics(),
            }
        run.finish(metrics, dropped)
    return run


def tell_whether_guessing(run: Run) -> None:
    """Say where the log goes if a finished run's model is not certain to be better than guessing."""
    low, high = (run.metrics.get(f"heldout_accuracy_{end}") for end in ("low", "high"))
    if low is None or high is None:
        logger.warning("%s: too little was held out to tell whether it is better than guessing", run.id)
    elif low <= 0.5:
        logger.warning(
            "%s: this reward model is not certain to be better than guessing: it orders %.0f%% (%.0f to %.0f%%) of the "
            "held-out pairs as the annotators did; do not optimise a policy against it before you have read %s",
            run.id, 100 * run.metrics["heldout_accuracy"], 100 * low, 100 * high, run.path / "report.html",
        )  # fmt: skip


def check_enough(name: str, train: list[Preference], heldout: list[Preference], config: RewardConfig) -> None:
    """Refuse what no model can be fitted to, or be measured by.

    Raises:
        DataError: too few pairs, always the same two answers, or each pair contradicted by another.
    """
    if len(train) < config.minimum_pairs or not heldout:
        enough = math.ceil(config.minimum_pairs / (1 - config.heldout_fraction))
        raise DataError(
            f"{name}: leaves {len(train)} pairs to train on and {len(heldout)} held out; at least "
            f"{config.minimum_pairs} and 1 are needed, so collect at least {enough} in all. {_intervals(config)}"
        )
    if all(row.weight == 0 for row in train):
        raise DataError(
            f"{name}: all {len(train)} pairs to train on have weight 0, so nothing can be learned; give some another "
            "weight"
        )
    if all(row.chosen == train[0].chosen and row.rejected == train[0].rejected for row in train):
        raise DataError(
            f"{name}: all {len(train)} pairs to train on choose the same answer over the same other one, which teaches "
            "nothing of any third; collect preferences between different answers"
        )
    if contradictory_pairs(train)[1] == len(train):
        raise DataError(
            f"{name}: each of the {len(train)} pairs to train on has its opposite with the same weight among them, so "
            "there is nothing to learn; let annotators settle what they disagree on"
        )


def _intervals(config: RewardConfig) -> str:
    """How many pairs make the held-out accuracy how certain, if it is 70% and pairs are independent."""
    parts = []
    for points in (10, 5):
        heldout = math.ceil(1.96**2 * 0.7 * 0.3 / (points / 100) ** 2)
        parts.append(
            f"{heldout / config.heldout_fraction:,.0f} pairs for 95% intervals of {points} points either way"
        )
    return f"Of an accuracy of 70%, it takes {' and '.join(parts)}"


def _groups(
    config: RewardConfig, given: PreferenceData, pairs: list[Preference], comparisons: list[Comparison]
) -> list[PromptChoices]:
    """What the loss is computed on.

    Raises:
        DataError: rankings are wanted, and there are none.
    """
    if config.loss == "bradley_terry":
        return choices_from_pairs(pairs, config.margin_coefficient)
    if given.reliability is None:
        raise DataError(NO_RANKINGS)
    return choices_from_rankings(comparisons, given.comparisons, given.reliability)


def _save(
    trainer: Any, tokenizer: PreTrainedTokenizerBase, run: Run, base: Model, config: RewardConfig,
    demonstrations: list[list[Message]],
) -> None:  # fmt: skip
    """Write `model/`, whose one output is the heads' mean, and `adapter/`; heads and shift go with the model."""
    head = trainer.accelerator.unwrap_model(trainer.model).score
    head = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    heads = full(head.weight).clone()
    if config.length == "residual":
        heads = _without_length(trainer, heads, config.rows_per_pass)
    model = whole_model(trainer)
    if not parallel.is_first():
        return
    head.weight = torch.nn.Parameter(heads.mean(dim=0, keepdim=True))
    head.out_features = 1
    with quiet_libraries():  # the fresh head of the base is said to be untrained; the merge replaces it
        save_model(
            model, tokenizer, run, load_reward_model(base, new_head=True) if config.lora else None,
            save_dtype(config.save_dtype, base),
        )  # fmt: skip
    folder = run.path / "model"
    if config.heads > 1:
        save_heads(folder, heads)
    _set_shift(folder, 0.0)  # the base may be a reward model, whose shift has nothing to do with the new head
    if demonstrations:
        scores = score(Model("reward model", folder, ""), demonstrations, tokenizer=tokenizer)
        _set_shift(folder, statistics.fmean(scores))


def _without_length(trainer: GroupRewardTrainer, heads: torch.Tensor, rows_per_pass: int) -> torch.Tensor:
    """The heads without what the states of the answers that were trained on know of length."""
    rows: Any = trainer.train_dataset
    states, log_lengths, prompts = [], [], []
    for start in range(0, len(rows), rows_per_pass):
        batch = rows[start : start + rows_per_pass]
        sequences = [
            torch.tensor(ids, device=heads.device) for answers in batch["answers"] for ids in answers
        ]
        states.append(trainer.states(sequences))
        for number, (answers, prompt_tokens) in enumerate(
            zip(batch["answers"], batch["prompt_tokens"], strict=True), start=start
        ):
            log_lengths += [math.log(len(ids) - prompt_tokens) for ids in answers]
            prompts += [number] * len(answers)
    tensors = (torch.tensor(values, device=heads.device) for values in (log_lengths, prompts))
    return without_length(heads, torch.cat(states), *tensors)


def _demonstrations(
    config: RewardConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[Message]], int]:
    """The demonstrations that shall score 0 on average, and how many were too long to be among them.

    Raises:
        DataError: a bad file, or all are too long.
    """
    if not config.demonstrations:
        return [], 0
    path = data_path(config.demonstrations)
    rows = [row.messages for row in read_jsonl(path, Demonstration)]
    limit = config.max_sequence_tokens
    kept = [row for row in rows if len(encode_conversation(tokenizer, row).input_ids) <= limit]
    if not kept:
        raise DataError(f"{path}: all demonstrations are longer than reward.max_sequence_tokens ({limit})")
    return kept, len(rows) - len(kept)


def _set_shift(folder: Path, shift: float) -> None:
    settings = json.loads((folder / "config.json").read_text())
    write_atomically(folder / "config.json", json.dumps(settings | {"reward_shift": shift}, indent=2) + "\n")
