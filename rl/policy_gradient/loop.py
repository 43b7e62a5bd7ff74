"""PPO's loop: updates, evaluations, checkpoints and progress, between `rl.ppo`'s building and saving."""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.chat.tokens import decode_response
from accord.errors import AccordError
from accord.progress import EveryFewSeconds
from accord.records import write_jsonl
from accord.sampling.verify import BFLOAT16_BOUND
from reward.scorers import Scorer
from rl.data import Data, EncodedPrompt
from rl.maths.advantages import shape_scores
from rl.own_reward import own_rewards
from rl.policy_gradient.checkpoints import Trained, save_checkpoint
from rl.policy_gradient.evaluation import preference_loss
from rl.policy_gradient.kl import next_kl_coefficient
from rl.policy_gradient.learner import NotFiniteError, Opinions, experience, hear, learn
from rl.policy_gradient.rollout import (
    PolicySampler,
    Rollout,
    check_sampler,
    make_rollout,
    prompts_of_update,
    seeds_of_update,
)
from rl.policy_gradient.settings import Settings
from rl.policy_gradient.watch import Evaluation, answer_figures, correlation, stop_reason
from rl.trackers import Trackers

NOT_FINITE_BATCH = "not-finite.jsonl"


@dataclass(frozen=True)
class Environment:
    """What the policy learns in: who asks, who writes its answers down, and who rewards them."""

    tokenizer: PreTrainedTokenizerBase
    data: Data
    sampler: PolicySampler
    scorer: Scorer | None = None
    """In place of the reward model."""


@dataclass(frozen=True)
class Log:
    """Where the rows of metrics go, beside the terminal."""

    folder: Path
    """The run's; checkpoints go there, too."""
    trackers: Trackers


class Loop:
    """Updates, evaluations and checkpoints, from wherever `trained.progress` is to the end."""

    def __init__(self, settings: Settings, environment: Environment, trained: Trained, log: Log) -> None:
        self.settings, self.environment, self.trained, self.log = settings, environment, trained, log
        self.actors, self.progress = trained.actors, trained.progress

    def run(self) -> None:
        """Go on to the last update or to a stop rule; afterwards `progress` tells which."""
        schedule, progress = self.settings.schedule, self.progress
        if parallel.is_first():  # after a kill, rows beyond the checkpoint are made again
            write_jsonl(self.log.folder / "metrics.jsonl", progress.rows)
        if progress.update == 0 and not progress.evaluations and schedule.evaluate_every_updates:
            self._log(self.evaluate())
        bar = tqdm(
            total=schedule.updates, initial=progress.update, desc="ppo", unit="update",
            disable=not (sys.stderr.isatty() and parallel.is_first()),
        )  # fmt: skip
        lines = EveryFewSeconds()
        with bar:
            while progress.update < schedule.updates and progress.stop_reason is None:
                row = self.update()
                is_last = progress.update == schedule.updates or progress.stop_reason is not None
                every = schedule.evaluate_every_updates
                evaluates = is_last or (every is not None and progress.update % every == 0)
                self._log(row)
                if evaluates:
                    self._log(self.evaluate())
                    progress.stop_reason = progress.stop_reason or self._stop_reason(row)
                is_due = evaluates or progress.update % schedule.checkpoint_every_updates == 0
                if is_due:
                    save_checkpoint(self.log.folder / "checkpoints", self.trained)
                bar.set_postfix_str(
                    f"score {row['score']:.2f}, KL {row['kl_k1_nats']:.2f} nats, {row['response_tokens']:.0f} tokens, "
                    f"ratio {row['ratio_mean']:.2f}, {row['tokens_per_second']:.0f} tokens/s"
                )
                bar.update()
                if bar.disable and lines.is_due(at_once=is_last):
                    self._say(f"ppo: update {progress.update}/{schedule.updates}, {_in_words(row)}")
        if progress.stop_reason:
            self._say(f"ppo: stopped after update {progress.update}: {progress.stop_reason}")

    def update(self) -> dict[str, Any]:
        """One update, and its row of metrics."""
        settings, progress, actors = self.settings, self.progress, self.actors
        data, sampler, optimiser = self.environment.data, self.environment.sampler, self.trained.optimiser
        number = progress.update + 1
        learning_rate = settings.schedule.learning_rate * (1 - (number - 1) / settings.schedule.updates)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
        restarts = sampler.restarts
        clock = [time.perf_counter()]

        count, seed = settings.sampling.prompts_per_update, settings.sampling.seed
        asked = [data.prompts[i] for i in prompts_of_update(number, len(data.prompts), count, seed)]
        rollout = self._sample(asked, seeds_of_update(number, len(asked), seed))
        clock.append(time.perf_counter())
        try:
            opinions = hear(actors, rollout, settings.passes)
            reward_model_score = opinions.scores.mean().item()
            opinions = self._rewarded(asked, rollout, opinions)
            mismatch = check_sampler(
                opinions.log_probabilities, opinions.sampler, opinions.tokens,
                BFLOAT16_BOUND if actors.bfloat16 else sampler.bound,
            )  # fmt: skip
            shaping = settings.shaping
            shaped = shape_scores(
                opinions.scores, opinions.lengths, torch.tensor(rollout.ended, device=actors.device),
                progress.score_shift, shaping.clip, shaping.missing_eos, shaping.missing_eos_penalty,
                shaping.length_penalty_per_token,
            )  # fmt: skip
            learned_from = experience(opinions, shaped.scores, progress.kl_coefficient, settings.estimation)
            clock.append(time.perf_counter())
            learned = learn(
                actors, optimiser, rollout, learned_from, settings.objective, settings.steps, settings.passes,
                seed=f"{seed}/{number}",
            )  # fmt: skip
        except NotFiniteError as error:
            path = self._keep(rollout)
            raise AccordError(
                f"ppo: {error} at update {number}; look at the batch in {path}, and lower the learning rate or mend "
                "the reward model"
            ) from None
        clock.append(time.perf_counter())
        sampler.sync()
        clock.append(time.perf_counter())

        scored = opinions.scored
        scores = (opinions.scores - progress.score_shift)[scored].tolist()
        lengths = [float(length) for length in opinions.lengths.tolist()]
        lengths_of_scored = [float(length) for length in opinions.lengths[scored].tolist()]
        figures = learned_from.figures() | answer_figures(rollout)
        if number == 1:
            progress.first_response_tokens = figures["response_tokens"]
        row = {
            "step": number,
            "learning_rate": learning_rate,
            "score": statistics.fmean(scores),
            "reward_model_score": reward_model_score - progress.score_shift,
            "shaped_score": shaped.scores[scored].mean().item(),
            "length_penalty": shaped.length_penalties.mean().item(),
            "score_length_correlation": correlation(scores, lengths_of_scored),
            "reward_disagreement": opinions.disagreements.mean().item(),
            "kl_coefficient": progress.kl_coefficient,
            **figures,
            **learned,
            "sampler_largest_difference": mismatch.largest,
            "sampler_mean_difference": mismatch.mean,
            "mean_importance_weight": learned_from.weights[opinions.tokens].mean().item(),
            "sampler_restarts": sampler.restarts - restarts,
            "tokens_per_second": sum(lengths) / (clock[-1] - clock[0]),
        }
        names = ("rollout_runtime", "scoring_runtime", "learning_runtime", "sync_runtime")
        if self.environment.scorer is not None:
            row["no_opinion_share"] = 1 - len(scores) / len(lengths)
        row |= {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
        target, horizon = settings.kl_control.target_nats, settings.kl_control.horizon_answers
        if target is not None:
            progress.kl_coefficient = next_kl_coefficient(
                progress.kl_coefficient, figures["kl_k1_nats"], target, len(asked), horizon
            )
        progress.update = number
        progress.stop_reason = self._stop_reason(row)
        return row

    def evaluate(self) -> dict[str, Any]:
        """The policy as it is now, on held-out prompts and preferences."""
        data, passes, progress = self.environment.data, self.settings.passes, self.progress
        loss = preference_loss(self.actors, data.pairs, self.settings.kl_coefficient, passes)
        # The same seeds each time, so that two evaluations differ by the policy alone.
        prompts = data.heldout_prompts
        rollout = self._sample(prompts, seeds_of_update(0, len(prompts), self.settings.sampling.seed))
        opinions = hear(self.actors, rollout, passes)
        reward_model_score = opinions.scores.mean().item() - progress.score_shift
        opinions = self._rewarded(prompts, rollout, opinions)
        scores = (opinions.scores - progress.score_shift)[opinions.scored]
        score = scores.mean().item()
        error = scores.std(correction=min(1, len(scores) - 1)).item() / math.sqrt(len(scores))
        kl = (opinions.log_probabilities - opinions.reference)[opinions.tokens].sum().item() / len(prompts)
        progress.evaluations.append(Evaluation(progress.update, score, loss))
        figures = {
            "score": score,
            "score_standard_error": error,
            "reward_model_score": reward_model_score,
            "reward_disagreement": opinions.disagreements.mean().item(),
            "preference_loss": loss,
            "kl_k1_nats": kl,
            **answer_figures(rollout),
        }
        if self.environment.scorer is not None:
            figures["no_opinion_share"] = 1 - len(scores) / len(prompts)
        return {"step": progress.update, **{f"eval_{name}": value for name, value in figures.items()}}

    def _rewarded(self, prompts: Sequence[EncodedPrompt], rollout: Rollout, opinions: Opinions) -> Opinions:
        """The opinions with the reward function's or the judge's values as scores, where there is one.

        Raises:
            AccordError: it has no opinion on any of the answers.
        """
        scorer, tokenizer, scores = self.environment.scorer, self.environment.tokenizer, opinions.scores
        if scorer is None:
            return opinions
        rewards = parallel.from_first(
            lambda: own_rewards(
                scorer, tokenizer, prompts, rollout.responses, reward_model_scores=scores.tolist()
            )
        )
        if all(reward is None for reward in rewards):
            raise AccordError(
                f"ppo: the reward function {scorer.reference} has no opinion on any of {len(rewards)} answers, so "
                "there is nothing to learn; give it prompts whose answers it can judge"
            )
        return replace(
            opinions,
            scores=torch.tensor([reward or 0.0 for reward in rewards], device=scores.device),
            scored=torch.tensor([reward is not None for reward in rewards], device=scores.device),
        )

    def _sample(self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int]) -> Rollout:
        sampling, eos = self.settings.sampling, self.environment.tokenizer.eos_token_id
        sampler, ids = self.environment.sampler, [prompt.ids for prompt in prompts]
        completions = sampler.sample(ids, seeds, sampling.max_response_tokens, sampling.temperature)
        return make_rollout(ids, completions, int(str(eos)))

    def _stop_reason(self, row: dict[str, Any]) -> str | None:
        progress, rules = self.progress, self.settings.stop_rules
        reason = stop_reason(
            row["kl_k1_nats"], row["response_tokens"], progress.first_response_tokens, progress.evaluations, rules
        )  # fmt: skip
        return parallel.broadcast(reason)  # the others must not differ by rounding

    def _log(self, row: dict[str, Any]) -> None:
        self.progress.rows.append(row)
        if parallel.is_first():
            with (self.log.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.log.trackers.log(row)

    def _say(self, line: str) -> None:
        if parallel.is_first():
            click.echo(line)

    def _keep(self, rollout: Rollout) -> Path:
        """Save a batch for inspection."""
        path, tokenizer = self.log.folder / NOT_FINITE_BATCH, self.environment.tokenizer
        if not parallel.is_first():
            return path
        rows = zip(
            rollout.prompts, rollout.responses, rollout.ended, rollout.sampler_log_probabilities, strict=True
        )  # fmt: skip
        write_jsonl(
            path,
            [
                {
                    "answer": number, "prompt": tokenizer.decode(prompt),
                    "response": decode_response(tokenizer, response), "ended": ended, "prompt_ids": prompt,
                    "response_ids": response, "sampler_log_probabilities": log_probabilities,
                }
                for number, (prompt, response, ended, log_probabilities) in enumerate(rows, start=1)
            ],
        )  # fmt: skip
        return path


def _in_words(row: dict[str, Any]) -> str:
    return (
        f"score {row['score']:.2f}, KL {row['kl_k1_nats']:.2f} nats, {row['response_tokens']:.0f} tokens an answer, "
        f"ratio up to {row['ratio_max']:.2f}, {row['tokens_per_second']:.0f} tokens/s"
    )
