"""RLOO and GRPO: the policy learns from its own answers which of them the reward model likes best, without a critic.

TRL's RLOOTrainer and GRPOTrainer do the work, sampling included. What is ours: prompts are encoded by `accord.chat`
and never again, an answer is scored by `reward.score` on the very tokens that were sampled, one that the limit cut off
gets a penalty for its score, the full distribution is sampled whatever the model's folder says, and a run that was
killed continues as if nothing had been.

    accord rloo CONFIG
    accord grpo CONFIG
"""

import functools
import math
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import GenerationConfig
from trl import GRPOConfig, RLOOConfig

from accord.bundled import data_path
from accord.config import check_trainer_arguments
from accord.errors import AccordError, UsageError
from accord.models import Model, check_same_tokens, load_policy, load_tokenizer, peft_config
from accord.runs import DataFile, Run, Runs, Source, file_of
from accord.training import (
    SET_BY_ACCORD,
    base_dtype,
    build_arguments,
    logged,
    quantization,
    quiet_libraries,
    save_trained_model,
    train_in_run,
    trainer_arguments,
)
from reward.score import load_scorer, score_ids
from rl.config import OnlineConfig
from rl.data import load_data

OURS = (
    *SET_BY_ACCORD, "beta", "num_generations", "num_generations_eval", "max_completion_length", "temperature", "top_p",
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "chat_template_kwargs", "generation_batch_size",
    "steps_per_generation", "num_iterations", "disable_dropout", "remove_unused_columns", "reward_weights",
)  # fmt: skip


def check_arguments(config: OnlineConfig) -> None:
    """Check the `trainer:` mapping of a configuration.

    Raises:
        UsageError: a key is none of the trainer's, or is one that accord sets.
    """
    target = RLOOConfig if config.algorithm == "rloo" else GRPOConfig
    check_trainer_arguments("rl.trainer", config.trainer, target, OURS)


def train_online(
    config: OnlineConfig, runs: Runs, policy: Model, reward_model: Model, preferences: Run | DataFile
) -> Run:
    """Optimise `policy` for the scores of `reward_model`; returns the finished run, whose `model/` is the new policy.

    Args:
        config: see `OnlineConfig`.
        runs: where the run is kept.
        policy: what is optimised; the reference, too.
        reward_model: has the policy's tokenizer.
        preferences: the prompts of the held-out part of them are never trained on, and measure the policy.

    Raises:
        DataError: a bad file, or too few prompts are left, or none held out.
        UsageError: policy and reward model do not fit together, or TRL refuses a setting.
        AccordError: a score, a loss or a gradient became NaN or infinite.
    """
    prompts_file = DataFile(data_path(config.prompts))
    sources: dict[str, Source] = {
        "policy": policy, "reward_model": reward_model, "preferences": preferences, "prompts": prompts_file,
    }  # fmt: skip
    with runs.begin(config.algorithm, config, sources) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        tokenizer = load_tokenizer(policy)
        path = file_of(preferences, "preferences.jsonl")
        data = load_data(
            tokenizer, prompts_file.path, path, config.heldout_fraction, config.max_sequence_tokens,
            config.max_response_tokens,
        )  # fmt: skip
        config.check_enough_prompts(len(data.prompts), prompts_file.path)

        # build
        model: Any = load_policy(policy, base_dtype(config), **quantization(config.lora))
        generation_config = model.generation_config
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
        trainer_class: Any = RLOOTrainer if config.algorithm == "rloo" else GRPOTrainer
        trainer = trainer_class(
            model=model,
            reward_funcs=reward_model_function(
                policy, reward_model, config.max_sequence_tokens, config.missing_eos_penalty
            ),
            args=build_arguments("rl", arguments_class, arguments),
            train_dataset=Dataset.from_dict({"prompt": data.prompts}),
            eval_dataset=Dataset.from_dict({"prompt": data.heldout_prompts}),
            processing_class=tokenizer,
            peft_config=peft_config(policy, config.lora, "CAUSAL_LM"),
        )
        # Prompts are ids already, which TRL would take for text.
        trainer._tokenize_prompts = lambda prompts: (prompts, None, {})

        # loop
        train_in_run(trainer, run, config.algorithm, evaluate_first=True)

        # save
        model.generation_config = generation_config
        save_trained_model(trainer, tokenizer, run, load_policy(policy) if config.lora else None)
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
        run.finish(metrics, data.dropped)
    return run


def reward_model_function(
    policy: Model, reward_model: Model, max_sequence_tokens: int, missing_eos_penalty: float
) -> Callable[..., list[float]]:
    """The reward function for TRL's trainers: the reward model's score of each answer, on the ids that were sampled.

    Raises:
        UsageError: the reward model has other tokens than the policy, or reads less than `max_sequence_tokens`.
    """
    check_same_tokens(policy, reward_model)
    tokenizer = load_tokenizer(policy)
    model = load_scorer(reward_model)
    if max_sequence_tokens > model.config.max_position_embeddings:
        raise UsageError(
            f"max_sequence_tokens ({max_sequence_tokens}) is more than the reward model {reward_model.reference} reads "
            f"({model.config.max_position_embeddings}); lower it"
        )

    def reward_model_score(
        prompts: list[list[int]], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        ended = [answer[-1] == tokenizer.eos_token_id for answer in completion_ids]
        pairs = zip(prompts, completion_ids, ended, strict=True)
        scores = score_ids(model, tokenizer, [prompt + answer for prompt, answer, whole in pairs if whole])
        if not all(math.isfinite(each) for each in scores):  # TRL would leave such answers out, silently
            raise AccordError(f"the reward model {reward_model.reference} gave a score that is no number")
        whole_scores = iter(scores)
        return [next(whole_scores) if whole else -missing_eos_penalty for whole in ended]

    return reward_model_score
