"""Proximal policy optimisation: the policy learns from its own answers what the reward model scores highly.

An update samples an answer to each of its prompts, has the four models look at them (policy, reference, reward model,
critic), turns scores and KL into advantages, takes a few epochs of optimiser steps, and gives the sampler the new
weights; the next rollout's log-probabilities prove that they arrived. The details are those of "The N+ Implementation
Details of RLHF with PPO" (Huang et al. 2024, https://arxiv.org/abs/2403.17031); ours are: answers are sampled by the
round's sampler and weighted by truncated importance sampling, no padding beyond a micro-batch is computed, the score
stands after an answer's last token whatever the lengths of the others, and the policy that is kept is chosen by
held-out preferences, not by the reward.

    accord ppo configs/tiny-ppo.yaml
    accelerate launch --num_processes 2 -m accord ppo configs/tiny-ppo.yaml
    accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 -m accord ppo configs/tiny-ppo.yaml

The first launch has all weights in each process, the second a half of each (`rl.policy_gradient.sharding`).
"""

import statistics
from pathlib import Path
from typing import Any

import torch

from accord import parallel
from accord.bundled import data_path
from accord.data.rows import Judgements, Rows, open_data, open_judgements
from accord.errors import UsageError
from accord.models.loading import check_can_be_trained, load_policy, load_tokenizer
from accord.models.references import Model
from accord.optimizers import build_optimizer, check_optimizer
from accord.runs import DataFile, Run, Runs, Source, file_of
from accord.sampling.shared import SharedSampler
from accord.training import base_dtype, computes_in_bfloat16, quiet_libraries, save_dtype, save_model
from reward.scorers import scorer_of
from rl.config import PPOConfig
from rl.data import load_data
from rl.own_reward import needed_columns
from rl.policy_gradient.checkpoints import Progress, Trained, load_best, load_checkpoint
from rl.policy_gradient.evaluation import mean_demonstration_score
from rl.policy_gradient.layouts import load_actors
from rl.policy_gradient.loop import NOT_FINITE_BATCH, Environment, Log, Loop
from rl.policy_gradient.rollout import PolicySampler
from rl.policy_gradient.settings import (
    Computation,
    Estimation,
    KLControl,
    Layout,
    Objective,
    Passes,
    Sampling,
    Schedule,
    Settings,
    Shaping,
    Steps,
    StopRules,
)
from rl.trackers import check_trackers, tracking

OPTIMISER_EPSILON = 1e-5
"""Of AdamW; Huang et al. found the usual 1e-8 worse (detail 18)."""


def train_ppo(
    config: PPOConfig,
    runs: Runs,
    policy: Model,
    reward_model: Model,
    preferences: Judgements,
    sampler: SharedSampler,
    prompts: Rows | None = None,
) -> Run:
    """Optimise `policy` for the scores of `reward_model`; returns the finished run, whose `model/` is the new policy.

    Args:
        config: see `PPOConfig`.
        runs: where the run is kept.
        policy: what is optimised; the reference, too.
        reward_model: has the policy's tokenizer; the critic starts from it.
        preferences: the held-out part of them says which policy is the best; its prompts are never trained on.
        sampler: the round's.
        prompts: rows in place of the file that `config` names.

    Raises:
        DataError: a bad file, or no prompt or no held-out pair is left.
        UsageError: policy and reward model do not fit together, the reward function is none, or a tracker or the
            optimiser is missing.
        AccordError: a score, a loss or a gradient became NaN or infinite; the batch is kept in the run.
        SyncError: the sampler's weights are not the trainer's.
    """
    check_trackers(config.report_to)
    if parallel.sharding() not in ("none", "fsdp2"):
        raise UsageError("PPO shards by fsdp2, not by DeepSpeed; set compute.sharding: fsdp2")
    check_optimizer(config.optimizer)
    config, preferences = open_data(config, runs, prompts=prompts), open_judgements(preferences, runs)
    prompts_file = DataFile(data_path(config.prompts))
    sources: dict[str, Source] = {
        "policy": policy, "reward_model": reward_model, "preferences": preferences, "prompts": prompts_file,
    }  # fmt: skip
    scorer = scorer_of(config.reward_function, runs) if config.reward_function else None
    if scorer:
        sources["reward_function"] = scorer
    if config.demonstrations:
        sources["demonstrations"] = DataFile(data_path(config.demonstrations))
    check_can_be_trained(policy)
    with (
        runs.begin("ppo", config, sources, shared=True) as run,
        quiet_libraries(),
        parallel.noticing_losses(),
    ):
        if run.is_done:
            return run
        (run.path / NOT_FINITE_BATCH).unlink(missing_ok=True)  # of an earlier attempt

        # load
        tokenizer = load_tokenizer(policy)
        data = load_data(
            tokenizer, prompts_file.path, file_of(preferences, "preferences.jsonl"), config.heldout_fraction,
            config.max_sequence_tokens, config.max_response_tokens, needed_columns(scorer),
        )  # fmt: skip

        # build
        bfloat16 = computes_in_bfloat16(config)
        run.record.hardware["training_precision"] = "bfloat16" if bfloat16 else "float32"
        if parallel.count() > 1:
            run.record.hardware |= {"processes": parallel.count(), "sharding": parallel.sharding()}
        adapter = _reward_adapter(runs, policy, reward_model) if config.shared_base else None
        actors = load_actors(
            tokenizer, policy, reward_model, config.max_sequence_tokens, Layout(config.lora, adapter),
            Computation(base_dtype(config), bfloat16, config.gradient_checkpointing), config.ensemble, config.seed,
        )  # fmt: skip
        if scorer:
            torch.nn.init.zeros_(actors.critic_head.weight)  # it knows nothing of this reward yet
            actors.score_shift = 0.0
        parameters = [*actors.policy_parameters.values(), *actors.critic_parameters.values()]
        optimiser = build_optimizer(
            config.optimizer,
            parameters,
            (actors.policy, actors.critic),
            config.learning_rate,
            OPTIMISER_EPSILON,
        )
        checkpoints = run.path / "checkpoints"
        progress = load_checkpoint(checkpoints, actors, optimiser)
        if progress is None:
            if config.demonstrations:
                shift = mean_demonstration_score(
                    actors, tokenizer, data_path(config.demonstrations), config.max_sequence_tokens,
                    config.tokens_per_pass,
                )  # fmt: skip
                actors.score_shift = parallel.broadcast(shift)
            progress = Progress(config.kl_coefficient, actors.score_shift)
        trained = Trained(actors, optimiser, progress)
        policy_sampler = PolicySampler(sampler, policy, actors.whole_policy, tokenizer)
        environment = Environment(tokenizer, data, policy_sampler, scorer)
        names = config.report_to if parallel.is_first() else []

        # loop
        with tracking(names, run.id, run.path / "trackers", config.model_dump(mode="json")) as trackers:
            Loop(settings_of(config), environment, trained, Log(run.path, trackers)).run()

        # save
        load_best(checkpoints, progress, actors)
        with actors.whole_policy() as whole:
            if parallel.is_first():
                save_model(
                    whole, tokenizer, run, load_policy(policy) if config.lora else None,
                    save_dtype(config.save_dtype, policy),
                )  # fmt: skip
        run.finish(final_figures(progress), data.dropped)
    return run


def settings_of(config: PPOConfig) -> Settings:
    """The configuration, sorted by which part of the loop needs it."""
    return Settings(
        kl_coefficient=config.kl_coefficient,
        schedule=Schedule(
            config.updates, config.learning_rate, config.evaluate_every_updates, config.checkpoint_every_updates,
            overlaps=config.overlap_updates == 1,
        ),
        sampling=Sampling(
            config.prompts_per_update, config.max_response_tokens, config.temperature, config.seed
        ),
        passes=Passes(config.temperature, config.tokens_per_pass),
        shaping=Shaping(
            config.score_clip, config.missing_eos, config.missing_eos_penalty, config.length_penalty_per_token
        ),
        estimation=Estimation(
            config.discount, config.trace, config.whiten_rewards, config.importance_weight_cap
        ),
        objective=Objective(
            config.clip, config.dual_clip, config.value_clip, config.value_coefficient, config.entropy_coefficient
        ),
        steps=Steps(config.epochs_per_update, config.minibatches_per_epoch, config.max_gradient_norm),
        kl_control=KLControl(config.kl_target_nats, config.kl_horizon_answers),
        stop_rules=StopRules(
            config.stop_at_kl_nats, config.stop_at_length_factor, config.stop_after_worse_evaluations
        ),
    )  # fmt: skip


def final_figures(progress: Progress) -> dict[str, Any]:
    """The run's metrics.json."""
    updates = [row for row in progress.rows if "policy_loss" in row]
    last = updates[-1]
    evaluated = [row for row in progress.rows if "eval_preference_loss" in row]
    best = progress.best
    unheard = [row["no_opinion_share"] for row in updates if "no_opinion_share" in row]
    kept = next(row for row in evaluated if best is not None and row["step"] == best.update)
    return {
        "updates": progress.update,
        "kept_update": kept["step"],
        "stop_reason": progress.stop_reason,
        "first_score": updates[0]["score"],
        "score": last["score"],
        "kl_nats": last["kl_k1_nats"],
        "eos_rate": last["eos_rate"],
        "response_tokens": last["response_tokens"],
        "heldout_score": kept["eval_score"],
        "heldout_kl_nats": kept["eval_kl_k1_nats"],
        "heldout_eos_rate": kept["eval_eos_rate"],
        "heldout_repetition": kept["eval_repetition"],
        "heldout_preference_loss": kept["eval_preference_loss"],
        "sampler_restarts": sum(row["sampler_restarts"] for row in updates),
    } | ({"no_opinion_share": statistics.fmean(unheard)} if unheard else {})


def _reward_adapter(runs: Runs, policy: Model, reward_model: Model) -> Path:
    """The adapter of a reward model that was trained from this policy.

    Raises:
        UsageError: it has none, or was trained from another model.
    """
    if reward_model.run_id is not None:
        record = runs.load(reward_model.run_id).record
        base = record.parents.get("base", record.inputs.get("base"))
        if base in (policy.run_id, policy.digest) and any(
            name.startswith("adapter/") for name in record.outputs
        ):
            return reward_model.folder.parent / "adapter"
    raise UsageError(
        f"rl.shared_base needs a reward model that was trained from the policy {policy.reference} with lora, and "
        f"{reward_model.reference} was not; set shared_base to false"
    )
