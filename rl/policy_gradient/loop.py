"""PPO's loop: updates, evaluations, checkpoints and progress, between `rl.ppo`'s building and saving."""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from accord import parallel
from accord.chat import answer, decode_response
from accord.errors import AccordError
from accord.progress import EveryFewSeconds
from accord.records import write_jsonl
from accord.sampling.verify import BFLOAT16_BOUND
from reward.scorers import Scorer
from rl.config import PPOConfig
from rl.data import Data, EncodedPrompt
from rl.maths.advantages import shape_scores
from rl.policy_gradient.actors import Actors
from rl.policy_gradient.checkpoints import Progress, save_checkpoint
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
from rl.policy_gradient.watch import Evaluation, answer_figures, correlation, stop_reason
from rl.trackers import Trackers

NOT_FINITE_BATCH = "not-finite.jsonl"


class Loop:
    """Updates, evaluations and checkpoints, from wherever `progress` is to the end."""

    def __init__(
        self, config: PPOConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, data: Data, actors: Actors,
        optimiser: torch.optim.Optimizer, progress: Progress, sampler: PolicySampler,
        trackers: Trackers, scorer: Scorer | None = None,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.tokenizer, self.data = config, folder, tokenizer, data
        self.actors, self.optimiser, self.progress, self.sampler = actors, optimiser, progress, sampler
        self.trackers, self.scorer = trackers, scorer

    def run(self) -> None:
        """Go on to the last update or to a stop rule; afterwards `progress` tells which."""
        config, progress = self.config, self.progress
        if parallel.is_first():  # after a kill, rows beyond the checkpoint are made again
            write_jsonl(self.folder / "metrics.jsonl", progress.rows)
        if progress.update == 0 and not progress.evaluations and config.evaluate_every_updates:
            self._log(self.evaluate())
        bar = tqdm(
            total=config.updates, initial=progress.update, desc="ppo", unit="update",
            disable=not (sys.stderr.isatty() and parallel.is_first()),
        )  # fmt: skip
        lines = EveryFewSeconds()
        with bar:
            while progress.update < config.updates and progress.stop_reason is None:
                row = self.update()
                is_last = progress.update == config.updates or progress.stop_reason is not None
                every = config.evaluate_every_updates
                evaluates = is_last or (every is not None and progress.update % every == 0)
                self._log(row)
                if evaluates:
                    self._log(self.evaluate())
                    progress.stop_reason = progress.stop_reason or self._stop_reason(row)
                is_due = evaluates or progress.update % config.checkpoint_every_updates == 0
                if is_due and parallel.is_first():
                    save_checkpoint(self.folder / "checkpoints", progress, self.actors, self.optimiser)
                bar.set_postfix_str(
                    f"score {row['score']:.2f}, KL {row['kl_k1_nats']:.2f} nats, {row['response_tokens']:.0f} tokens, "
                    f"ratio {row['ratio_mean']:.2f}, {row['tokens_per_second']:.0f} tokens/s"
                )
                bar.update()
                if bar.disable and lines.is_due(at_once=is_last):
                    self._say(f"ppo: update {progress.update}/{config.updates}, {_in_words(row)}")
        if progress.stop_reason:
            self._say(f"ppo: stopped after update {progress.update}: {progress.stop_reason}")

    def update(self) -> dict[str, Any]:
        """One update, and its row of metrics."""
        config, progress, actors = self.config, self.progress, self.actors
        number = progress.update + 1
        learning_rate = config.learning_rate * (1 - (number - 1) / config.updates)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        restarts = self.sampler.restarts
        clock = [time.perf_counter()]

        chosen = prompts_of_update(number, len(self.data.prompts), config.prompts_per_update, config.seed)
        asked = [self.data.prompts[i] for i in chosen]
        rollout = self._sample(asked, seeds_of_update(number, len(chosen), config.seed))
        clock.append(time.perf_counter())
        try:
            opinions = hear(actors, rollout, config.temperature, config.tokens_per_pass)
            reward_model_score = opinions.scores.mean().item()
            opinions = self._rewarded(asked, rollout, opinions)
            mismatch = check_sampler(
                opinions.log_probabilities, opinions.sampler, opinions.tokens,
                BFLOAT16_BOUND if actors.bfloat16 else self.sampler.bound,
            )  # fmt: skip
            shaped = shape_scores(
                opinions.scores, opinions.lengths, torch.tensor(rollout.ended, device=actors.device),
                progress.score_shift, config.score_clip, config.missing_eos, config.missing_eos_penalty,
                config.length_penalty_per_token,
            )  # fmt: skip
            learned_from = experience(
                opinions, shaped.scores, progress.kl_coefficient, config.discount, config.trace, config.whiten_rewards,
                config.importance_weight_cap,
            )  # fmt: skip
            clock.append(time.perf_counter())
            learned = learn(
                actors, self.optimiser, rollout, learned_from, epochs=config.epochs_per_update,
                minibatches=config.minibatches_per_epoch, clip=config.clip, value_clip=config.value_clip,
                value_coefficient=config.value_coefficient, entropy_coefficient=config.entropy_coefficient,
                dual_clip=config.dual_clip, max_gradient_norm=config.max_gradient_norm,
                temperature=config.temperature, tokens_per_pass=config.tokens_per_pass, seed=f"{config.seed}/{number}",
            )  # fmt: skip
        except NotFiniteError as error:
            path = self._keep(rollout)
            raise AccordError(
                f"ppo: {error} at update {number}; look at the batch in {path}, and lower the learning rate or mend "
                "the reward model"
            ) from None
        clock.append(time.perf_counter())
        if parallel.is_first():
            self.sampler.sync()
        clock.append(time.perf_counter())

        scores = (opinions.scores - progress.score_shift).tolist()
        lengths = [float(length) for length in opinions.lengths.tolist()]
        figures = learned_from.figures() | answer_figures(rollout)
        if number == 1:
            progress.first_response_tokens = figures["response_tokens"]
        row = {
            "step": number,
            "learning_rate": learning_rate,
            "score": statistics.fmean(scores),
            "reward_model_score": reward_model_score - progress.score_shift,
            "shaped_score": shaped.scores.mean().item(),
            "length_penalty": shaped.length_penalties.mean().item(),
            "score_length_correlation": correlation(scores, lengths),
            "reward_disagreement": opinions.disagreements.mean().item(),
            "kl_coefficient": progress.kl_coefficient,
            **figures,
            **learned,
            "sampler_largest_difference": mismatch.largest,
            "sampler_mean_difference": mismatch.mean,
            "mean_importance_weight": learned_from.weights[opinions.tokens].mean().item(),
            "sampler_restarts": self.sampler.restarts - restarts,
            "tokens_per_second": sum(lengths) / (clock[-1] - clock[0]),
        }
        names = ("rollout_runtime", "scoring_runtime", "learning_runtime", "sync_runtime")
        row |= {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
        if config.kl_target_nats is not None:
            progress.kl_coefficient = next_kl_coefficient(
                progress.kl_coefficient, figures["kl_k1_nats"], config.kl_target_nats, len(chosen),
                config.kl_horizon_answers,
            )  # fmt: skip
        progress.update = number
        progress.stop_reason = self._stop_reason(row)
        return row

    def evaluate(self) -> dict[str, Any]:
        """The policy as it is now, on held-out prompts and preferences."""
        config, progress = self.config, self.progress
        loss = preference_loss(
            self.actors, self.data.pairs, config.kl_coefficient, config.temperature, config.tokens_per_pass
        )
        # The same seeds each time, so that two evaluations differ by the policy alone.
        prompts = self.data.heldout_prompts
        rollout = self._sample(prompts, seeds_of_update(0, len(prompts), config.seed))
        opinions = hear(self.actors, rollout, config.temperature, config.tokens_per_pass)
        reward_model_score = opinions.scores.mean().item() - progress.score_shift
        opinions = self._rewarded(prompts, rollout, opinions)
        score = (opinions.scores - progress.score_shift).mean().item()
        error = opinions.scores.std(correction=min(1, len(prompts) - 1)).item() / math.sqrt(len(prompts))
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
        return {"step": progress.update, **{f"eval_{name}": value for name, value in figures.items()}}

    def _rewarded(self, prompts: Sequence[EncodedPrompt], rollout: Rollout, opinions: Opinions) -> Opinions:
        """The opinions with the reward function's or the judge's values as scores, where there is one."""
        if self.scorer is None:
            return opinions
        conversations = [prompt.messages for prompt in prompts]
        responses = [decode_response(self.tokenizer, response) for response in rollout.responses]
        scorer, scores = self.scorer, opinions.scores.tolist()

        def find() -> list[float]:
            if scorer.function:
                return scorer.function(
                    conversations, responses, completion_ids=rollout.responses, reward_model_scores=scores
                )
            return scorer.score(
                [
                    [*prompt, *answer(response)]
                    for prompt, response in zip(conversations, responses, strict=True)
                ]
            )

        rewards = parallel.from_first(find)
        return replace(opinions, scores=torch.tensor(rewards, device=opinions.scores.device))

    def _sample(self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int]) -> Rollout:
        config, eos = self.config, self.tokenizer.eos_token_id
        ids = [prompt.ids for prompt in prompts]
        completions = parallel.from_first(
            lambda: self.sampler.sample(ids, seeds, config.max_response_tokens, config.temperature)
        )
        return make_rollout(ids, completions, int(str(eos)))

    def _stop_reason(self, row: dict[str, Any]) -> str | None:
        config, progress = self.config, self.progress
        reason = stop_reason(
            row["kl_k1_nats"], row["response_tokens"], progress.first_response_tokens, progress.evaluations,
            config.stop_at_kl_nats, config.stop_at_length_factor, config.stop_after_worse_evaluations,
        )  # fmt: skip
        return parallel.broadcast(reason)  # the others must not differ by rounding

    def _log(self, row: dict[str, Any]) -> None:
        self.progress.rows.append(row)
        if parallel.is_first():
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.trackers.log(row)

    def _say(self, line: str) -> None:
        if parallel.is_first():
            click.echo(line)

    def _keep(self, rollout: Rollout) -> Path:
        """Save a batch for inspection."""
        path = self.folder / NOT_FINITE_BATCH
        if not parallel.is_first():
            return path
        rows = zip(
            rollout.prompts, rollout.responses, rollout.ended, rollout.sampler_log_probabilities, strict=True
        )  # fmt: skip
        write_jsonl(
            path,
            [
                {
                    "answer": number, "prompt": self.tokenizer.decode(prompt),
                    "response": decode_response(self.tokenizer, response), "ended": ended, "prompt_ids": prompt,
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
