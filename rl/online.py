"""RLOO and GRPO: the policy learns from its own answers which of them the reward model likes best, without a critic.

TRL's RLOOTrainer and GRPOTrainer do the work, sampling included. What is ours: prompts are encoded by `accord.chat`
and never again, an answer is scored by `reward.score` on the very tokens that were sampled, one that the limit cut off
gets a penalty for its score, the full distribution is sampled whatever the model's folder says, and a run that was
killed continues as if nothing had been.

    accord rloo CONFIG
    accord grpo CONFIG
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl import GRPOConfig, RLOOConfig

from accord import parallel
from accord.bundled import data_path
from accord.config import check_trainer_arguments
from accord.data.rows import Judgements, Rows, open_data, open_judgements
from accord.errors import AccordError
from accord.models.adapters import peft_config
from accord.models.loading import check_can_be_trained, load_policy, load_tokenizer
from accord.models.references import Model
from accord.runs import DataFile, Run, Runs, file_of
from accord.training import (
    SET_BY_ACCORD,
    base_dtype,
    build_arguments,
    logged,
    quantization,
    quiet_libraries,
    save_dtype,
    save_trained_model,
    train_in_run,
    trainer_arguments,
)
from reward.scorers import Scorer, scorer_of
from rl.config import OnlineConfig
from rl.data import EncodedPrompt, load_data
from rl.own_reward import needed_columns, own_rewards
from rl.rewards import reward_model_scores, sources_of
from rl.together import Together, heldout_once

OURS = (
    *SET_BY_ACCORD, "beta", "num_generations", "num_generations_eval", "max_completion_length", "temperature", "top_p",
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "chat_template_kwargs", "generation_batch_size",
    "steps_per_generation", "num_iterations", "disable_dropout", "remove_unused_columns", "reward_weights",
    "sync_ref_model",
)  # fmt: skip


def check_arguments(config: OnlineConfig) -> None:
    """Check the `trainer:` mapping of a configuration.

    Raises:
        UsageError: a key is none of the trainer's, or is one that accord sets.
    """
    target = RLOOConfig if config.algorithm == "rloo" else GRPOConfig
    check_trainer_arguments("rl.trainer", config.trainer, target, OURS)


def train_online(
    config: OnlineConfig, runs: Runs, policy: Model, reward_model: Model | None,
    preferences: Judgements | None = None, prompts: Rows | None = None,
) -> Run:  # fmt: skip
    """Optimise `policy` for the scores of `reward_model`; returns the finished run, whose `model/` is the new policy.

    Args:
        config: see `OnlineConfig`.
        runs: where the run is kept.
        policy: what is optimised; the reference, too.
        reward_model: has the policy's tokenizer; not used where the configuration names a reward function, or a judge.
        preferences: the prompts of the held-out part of them are never trained on, and measure the policy; without
            them, a part of the prompts does.
        prompts: rows in place of the file that `config` names.

    Raises:
        DataError: a bad file, or too few prompts are left, or none held out.
        UsageError: policy and reward model do not fit together, the reward function is none, or TRL refuses a setting.
        AccordError: a score, a loss or a gradient became NaN or infinite.
    """
    config = open_data(config, runs, prompts=prompts)
    prompts_file = DataFile(data_path(config.prompts))
    judged = None if preferences is None else open_judgements(preferences, runs)
    scorer = scorer_of(config.reward_function, runs) if config.reward_function else None
    sources = sources_of(config.algorithm, policy, prompts_file, judged, scorer, reward_model)
    check_can_be_trained(policy)
    with runs.begin(config.algorithm, config, sources, shared=True) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        tokenizer = load_tokenizer(policy)
        path = None if judged is None else file_of(judged, "preferences.jsonl")
        data = load_data(
            tokenizer, prompts_file.path, path, config.heldout_fraction, config.max_sequence_tokens,
            config.max_response_tokens, needed_columns(scorer),
        )  # fmt: skip
        config.check_enough_prompts(len(data.prompts), prompts_file.path)

        # build
        model: Any = load_policy(policy, base_dtype(config), **quantization(config.lora))
        model.generation_config = GenerationConfig(  # the folder's may cut the distribution
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
        )
        arguments = trainer_arguments(config, run, evaluate=True) | {
            "beta": config.kl_coefficient, "num_generations": config.num_generations, "num_generations_eval": 1,
            "max_completion_length": config.max_response_tokens, "disable_dropout": True,
        }  # fmt: skip
        del arguments["max_length"]
        from trl import GRPOTrainer, RLOOTrainer  # imports vLLM, where there is one, and warns of its version

        arguments_class: Any = RLOOConfig if config.algorithm == "rloo" else GRPOConfig
        theirs: Any = RLOOTrainer if config.algorithm == "rloo" else GRPOTrainer
        trainer_class: Any = type("_Trainer", (Together, theirs), {})
        rows = [*data.prompts, *data.heldout_prompts]
        reward: Callable[..., Any]
        if scorer:
            reward = own_reward_function(
                scorer, tokenizer, rows, len(data.prompts), config.missing_eos_penalty
            )
        else:
            assert reward_model is not None
            reward = reward_model_function(
                tokenizer, policy, reward_model, config.max_sequence_tokens, config.missing_eos_penalty
            )
        trainer = trainer_class(
            model=model,
            reward_funcs=heldout_once(reward, len(data.prompts)),
            args=build_arguments("rl", arguments_class, arguments),
            train_dataset=_dataset(rows[: len(data.prompts)], 0),
            eval_dataset=_dataset(data.heldout_prompts, len(data.prompts)),
            processing_class=tokenizer,
            peft_config=peft_config(policy, config.lora, "CAUSAL_LM"),
        )
        # Prompts are ids already, which TRL would take for text.
        trainer._tokenize_prompts = lambda prompts: (prompts, None, {})

        # loop
        train_in_run(trainer, run, config.algorithm, evaluate_first=True)

        # save
        save_trained_model(
            trainer, tokenizer, run, load_policy(policy) if config.lora and parallel.is_first() else None,
            save_dtype(config.save_dtype, policy),
        )  # fmt: skip
        last, first = functools.partial(logged, trainer), functools.partial(logged, trainer, first=True)
        metrics = {
            "prompts": len(data.prompts),
            "heldout_prompts": len(data.heldout_prompts),
            "updates": trainer.state.global_step,
            "first_reward": first("reward"),
            "reward": last("reward"),
            "kl_nats_per_token": last("kl"),
            "first_response_tokens": first("completions/mean_length"),
            "response_tokens": last("completions/mean_length"),
            "truncated_share": last("completions/clipped_ratio"),
            "heldout_reward_before": first("eval_reward"),
            "heldout_reward": last("eval_reward"),
            "heldout_kl_nats_per_token": last("eval_kl"),
            "heldout_response_tokens": last("eval_completions/mean_length"),
        }
        unheard = [row["no_opinion_share"] for row in trainer.state.log_history if "no_opinion_share" in row]
        if unheard:
            metrics["no_opinion_share"] = statistics.fmean(unheard)
        run.finish(metrics, data.dropped)
    return run


def _dataset(prompts: Sequence[EncodedPrompt], first: int) -> Dataset:
    """Token ids, and each row's number, by which its columns are found: Arrow would change some values."""
    return Dataset.from_dict(
        {"prompt": [prompt.ids for prompt in prompts], "row": list(range(first, first + len(prompts)))}
    )


def own_reward_function(
    scorer: Scorer, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EncodedPrompt], training_rows: int,
    missing_eos_penalty: float,
) -> Callable[..., list[float | None]]:  # fmt: skip
    """The reward function for TRL's trainers, from one of the user's or a judge.

    TRL leaves an answer without an opinion out of what the others are compared with, and its advantage is 0.

    Args:
        scorer: the user's.
        tokenizer: the policy's.
        rows: by the number that a data set's row has.
        training_rows: how many of them are not held out; they come first.
        missing_eos_penalty: an answer that was cut off gets minus this, unless there is no opinion on it.
    """

    def own_reward(
        row: list[int],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **given: Any,
    ) -> list[float | None]:
        ended = [answer[-1] == tokenizer.eos_token_id for answer in completion_ids]
        # A function sees all answers, as in TRL; a judge is not asked about those whose score is the penalty anyway.
        asked = [i for i, whole in enumerate(ended) if whole or scorer.function]
        passed = {name: given[name] for name in ("trainer_state", "log_extra") if name in given}
        found = own_rewards(
            scorer, tokenizer, [rows[row[i]] for i in asked], [completion_ids[i] for i in asked],
            log_metric=log_metric, **passed,
        )  # fmt: skip
        unheard = found.count(None)
        if unheard == len(row) and row[0] < training_rows:
            raise AccordError(
                f"the reward function {scorer.reference} has no opinion on any of {len(row)} answers, so there is "
                "nothing to learn; give it prompts whose answers it can judge"
            )
        log_metric("no_opinion_share", unheard / len(row))
        rewards: list[float | None] = [-missing_eos_penalty] * len(row)
        for i, reward in zip(asked, found, strict=True):
            if ended[i] or reward is None:
                rewards[i] = reward
        return rewards

    return own_reward


def reward_model_function(
    tokenizer: PreTrainedTokenizerBase, policy: Model, reward_model: Model, max_sequence_tokens: int,
    missing_eos_penalty: float,
) -> Callable[..., list[float]]:  # fmt: skip
    """The reward function for TRL's trainers: the reward model's score of each answer, on the ids that were sampled.

    Raises:
        UsageError: the reward model has other tokens than the policy, or reads less than `max_sequence_tokens`.
    """
    scores_of = reward_model_scores(tokenizer, policy, reward_model, max_sequence_tokens)

    def reward_model_score(
        prompts: list[list[int]], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        ended = [answer[-1] == tokenizer.eos_token_id for answer in completion_ids]
        pairs = zip(prompts, completion_ids, ended, strict=True)
        whole_scores = iter(scores_of([prompt + answer for prompt, answer, whole in pairs if whole]))
        return [next(whole_scores) if whole else -missing_eos_penalty for whole in ended]

    return reward_model_score
