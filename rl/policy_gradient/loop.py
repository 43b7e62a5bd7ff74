"""PPO's loop: updates, evaluations, checkpoints and progress, between `rl.ppo`'s building and saving."""

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.chat.tokens import decode_response
from accord.errors import AccordError
from accord.progress import EveryFewSeconds
from accord.sampling.protocol import Completion
from accord.sampling.verify import BFLOAT16_BOUND, TOKENS_PER_ANSWER, Bound
from accord.terminal import say
from accord.text_files import write_jsonl
from reward.scorers import Scorer
from rl.data import Data, EncodedPrompt
from rl.maths.advantages import shape_scores
from rl.own_reward import own_rewards
from rl.policy_gradient.checkpoints import Trained, save_checkpoint
from rl.policy_gradient.evaluation import preference_loss
from rl.policy_gradient.kl import next_kl_coefficient
from rl.policy_gradient.learner import NotFiniteError, Opinions, experience, hear, learn
from rl.policy_gradient.rollout import (
    Mismatch,
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
ANSWERS_APART = 4
"""Of each of the sampler's engines, by which its weights are checked where the rollout does not tell."""


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
        ahead = progress.ahead
        seeds = seeds_of_update(number, len(asked), seed)
        rollout = self._sample(asked, seeds) if ahead is None else self._rollout(asked, ahead)
        try:
            # Answers ahead are by an older policy, so others tell whether the sampler has the weights of now.
            mismatch = None if ahead is None else self._check_sampler_apart(asked, number)
            answers_of_next = self._begin_next(number + 1) if settings.schedule.overlaps else None
            clock.append(time.perf_counter())
            opinions = hear(actors, rollout, settings.passes)
            reward_model_score = opinions.scores.mean().item()
            opinions = self._rewarded(asked, rollout, opinions)
            mismatch = mismatch or self._check_sampler(opinions)
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
        progress.ahead = answers_of_next() if answers_of_next else None
        if settings.schedule.overlaps:
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
        waiting = ("waiting_runtime",) if settings.schedule.overlaps else ()
        names = ("rollout_runtime", "scoring_runtime", "learning_runtime", *waiting, "sync_runtime")
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

    def _sample(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], longest: int | None = None
    ) -> Rollout:
        sampling, sampler = self.settings.sampling, self.environment.sampler
        ids, tokens = [prompt.ids for prompt in prompts], longest or sampling.max_response_tokens
        completions = sampler.sample(ids, seeds, tokens, sampling.temperature)
        return self._rollout(prompts, completions)

    def _rollout(self, prompts: Sequence[EncodedPrompt], completions: Sequence[Completion]) -> Rollout:
        eos = self.environment.tokenizer.eos_token_id
        return make_rollout([prompt.ids for prompt in prompts], completions, int(str(eos)))

    def _begin_next(self, number: int) -> Callable[[], list[Completion]] | None:
        """Begin to sample the answers of an update, if there is one; returns what waits for them.

        Nobody else may use the sampler until then.
        """
        schedule, sampling, data = self.settings.schedule, self.settings.sampling, self.environment.data
        if number > schedule.updates:
            return None
        count, seed = sampling.prompts_per_update, sampling.seed
        ids = [data.prompts[i].ids for i in prompts_of_update(number, len(data.prompts), count, seed)]
        return self.environment.sampler.begin(
            ids, seeds_of_update(number, len(ids), seed), sampling.max_response_tokens, sampling.temperature
        )

    def _check_sampler(self, opinions: Opinions) -> Mismatch:
        """Have the sampler's engines the weights that the policy has now, by which these answers are?"""
        engines = self.environment.sampler.engines
        return check_sampler(
            opinions.log_probabilities, opinions.sampler, opinions.tokens, self._bound, engines
        )

    def _check_sampler_apart(self, prompts: Sequence[EncodedPrompt], number: int) -> Mismatch:
        """The same by some short answers of each engine that are for this alone."""
        engines = self.environment.sampler.engines
        count = ANSWERS_APART * self._bound.answers_per_prompt * len(engines)
        asked = list(itertools.islice(itertools.cycle(prompts), count))
        seeds = seeds_of_update(-number, count, self.settings.sampling.seed)
        longest = min(TOKENS_PER_ANSWER, self.settings.sampling.max_response_tokens)
        rollout = self._sample(asked, seeds, longest)
        return self._check_sampler(hear(self.actors, rollout, self.settings.passes))

    @property
    def _bound(self) -> Bound:
        return BFLOAT16_BOUND if self.actors.bfloat16 else self.environment.sampler.bound

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
            say(line)

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
