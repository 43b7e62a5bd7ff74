"""Best of n, or rejection-sampling fine-tuning: the policy learns the best of its own answers as demonstrations.

In a round it answers every prompt n times on the round's sampler, the reward model (or a function, or a judge) scores
the answers, and TRL's SFTTrainer teaches the policy the best one of each prompt, on the very tokens that were sampled.
Which answers these are stands in demonstrations.jsonl, each marked as synthetic; samples.jsonl holds all others, too.

    accord best_of_n CONFIG

Sources: Touvron et al. 2023, https://arxiv.org/abs/2307.09288, section 3.2.3; Dong et al. 2023 (RAFT),
https://arxiv.org/abs/2304.06767.
"""

import functools
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig as TrlSFTConfig
from trl import SFTTrainer

from accord import parallel
from accord.bundled import data_path
from accord.chat.tokens import EncodedConversation
from accord.compute.passes import Passes
from accord.config import check_trainer_arguments
from accord.data.rows import Judgements, Rows, open_data, open_judgements
from accord.errors import DataError
from accord.models.adapters import peft_config
from accord.models.loading import check_can_be_trained, load_policy, load_tokenizer
from accord.models.references import Model
from accord.runs import DataFile, Run, Runs, file_of
from accord.sampling.log_probabilities import token_log_probabilities
from accord.sampling.shared import SharedSampler
from accord.statistics import Bootstrap, Estimate
from accord.terminal import say
from accord.text_files import write_atomically, write_jsonl
from accord.training import (
    base_dtype,
    build_arguments,
    quantization,
    quiet_libraries,
    save_dtype,
    save_trained_model,
    train_in_run,
    trainer_arguments,
)
from reward.scorers import scorer_of
from rl.answers import Asking, answer_prompts, own_score, reward_model_score
from rl.config import BestOfNConfig
from rl.data import EncodedPrompt, load_data
from rl.own_reward import needed_columns
from rl.rewards import sources_of
from rl.selection import Answer, Best, choose_best
from rl.synthetic import write_samples
from sft.data import as_dataset
from sft.train import OURS

check_arguments = functools.partial(check_trainer_arguments, "rl.trainer", target=TrlSFTConfig, ours=OURS)
DONE = "done"
"""The file that says that a round was learned to its end."""


def train_best_of_n(
    config: BestOfNConfig, runs: Runs, policy: Model, reward_model: Model | None, preferences: Judgements | None,
    sampler: SharedSampler, prompts: Rows | None = None,
) -> Run:  # fmt: skip
    """Fine-tune `policy` on the best of its answers; returns the finished run, whose `model/` is the new policy.

    Args:
        config: see `BestOfNConfig`.
        runs: where the run is kept.
        policy: what is optimised; the reference, too.
        reward_model: has the policy's tokenizer; not used where the configuration names a reward function, or a judge.
        preferences: the prompts of the held-out part of them are never trained on, and measure the policy; without
            them, a part of the prompts does.
        sampler: the round's.
        prompts: rows in place of the file that `config` names.

    Raises:
        DataError: a bad file, no prompt is left, or no answer of a round may be learned.
        UsageError: policy and reward model do not fit together, or the reward function is none.
        AccordError: a score or a loss became NaN or infinite.
    """
    config = open_data(config, runs, prompts=prompts)
    prompts_file = DataFile(data_path(config.prompts))
    judged = None if preferences is None else open_judgements(preferences, runs)
    scorer = scorer_of(config.reward_function, runs) if config.reward_function else None
    sources = sources_of("best_of_n", policy, prompts_file, judged, scorer, reward_model)
    check_can_be_trained(policy)
    with runs.begin("best_of_n", config, sources, shared=True) as run, quiet_libraries():
        if run.is_done:
            return run

        # load
        tokenizer = load_tokenizer(policy)
        data = load_data(
            tokenizer, prompts_file.path, None if judged is None else file_of(judged, "preferences.jsonl"),
            config.heldout_fraction, config.max_sequence_tokens, config.max_response_tokens, needed_columns(scorer),
        )  # fmt: skip

        # build
        kept = run.path / "checkpoints"
        asking: Asking | None = None
        if parallel.is_first():  # it samples and scores, and tells the others
            if scorer:
                score = own_score(scorer, tokenizer)
            else:
                assert reward_model is not None
                score = reward_model_score(tokenizer, policy, reward_model, config.max_sequence_tokens)
            asking = Asking(
                tokenizer, sampler, score, config.samples_per_prompt, config.max_response_tokens, config.temperature,
                config.seed,
            )  # fmt: skip

        def answer(*what: Any, whole_only: bool) -> list[list[Answer]]:
            ask: Any = answer_prompts
            found: list[list[Answer]] = parallel.from_first(lambda: ask(asking, *what, whole_only))
            return found

        def answer_heldout(model: Model, when: str) -> list[list[Answer]]:
            label = f"best_of_n: held out, {when}"
            return answer(model, data.heldout_prompts, 0, kept / f"heldout-{when}", label, whole_only=False)

        # loop
        before = answer_heldout(policy, "before")
        current, dropped = policy, Counter[str]()
        rounds: list[tuple[list[list[Answer]], list[Best]]] = []
        rows: list[dict[str, Any]] = []
        for number in range(1, config.rounds + 1):
            label = f"best_of_n: round {number}/{config.rounds}"
            part = Run(kept / f"round-{number}", run.record)
            answers = answer(current, data.prompts, number, part.path / "samples", label, whole_only=True)
            best, counts = choose_best(
                answers, config.keep_fraction, config.least_gain, f"{config.seed}/{number}"
            )
            _refuse_nothing(best, answers, counts, number)
            dropped.update(counts)
            rounds.append((answers, best))
            figures = _figures(answers, best)
            _say(
                f"{label}: {len(best)} of {len(answers)} prompts give a demonstration, which scores "
                f"{figures['best_score']:.3f}, and an answer {figures['score']:.3f}"
            )
            if not parallel.from_first((part.path / DONE).exists):
                learned = [_as_learned(data.prompts[each.prompt], each.answer) for each in best]
                _learn(config, part, policy, number, tokenizer, learned, label)
            current = Model(f"{run.id}, round {number}", part.path / "model", f"{run.id}/{number}")
            steps = sum("loss" in row for row in rows)
            rows.append({"step": steps, "round": number, **figures, **counts})
            rows += [{**row, "step": row["step"] + steps, "round": number} for row in part.metric_rows()]
            if parallel.is_first():
                write_jsonl(run.path / "metrics.jsonl", rows)
        after = answer_heldout(current, "after")

        # save
        metrics: dict[str, Any] = {}
        if parallel.is_first():
            for name in ("model", "adapter"):
                shutil.rmtree(run.path / name, ignore_errors=True)
                if (part.path / name).exists():
                    shutil.copytree(part.path / name, run.path / name)
            judge = scorer or reward_model
            assert judge is not None
            made_by = {
                "run": run.id, "model": policy.reference, "n": config.samples_per_prompt, "scored_by": judge.reference,
            }  # fmt: skip
            write_samples(run, data.prompts, data.heldout_prompts, rounds, before, after, made_by)
            losses = [row["loss"] for row in rows if "loss" in row]
            answers, best = rounds[-1]
            metrics = {
                "prompts": len(data.prompts),
                "heldout_prompts": len(data.heldout_prompts),
                "rounds": config.rounds,
                "updates": len(losses),
                "demonstrations_kept": sum(len(each) for _, each in rounds),
                "sampled_tokens": sum(
                    len(a.token_ids) for group, _ in rounds for each in group for a in each
                ),
                "first_loss": losses[0],
                "train_loss": statistics.fmean(losses),
                "first_score": _figures(*rounds[0])["score"],
                **_figures(answers, best),
                **_heldout_figures(before, after),
                "heldout_kl_nats": _kl(current, policy, data.heldout_prompts, after, config.temperature),
            }
        run.finish(metrics, {**data.dropped, **dropped})
    return run


class _Trainer(Passes, SFTTrainer):
    """In several processes, each has some of the passes."""


def _learn(
    config: BestOfNConfig, part: Run, policy: Model, number: int, tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedConversation], label: str,
) -> None:  # fmt: skip
    """Fine-tune on a round's demonstrations what the round before left: its weights, or its adapters on the policy."""
    last = part.path.parent / f"round-{number - 1}"
    base: Any
    if number > 1 and config.lora:
        import peft

        base = load_policy(policy, base_dtype(config), **quantization(config.lora))
        base = peft.PeftModel.from_pretrained(base, str(last / "adapter"), is_trainable=True)
    else:
        start = policy if number == 1 else Model(last.name, last / "model", last.name)
        base = load_policy(start, base_dtype(config), **quantization(config.lora))
    trainer = _Trainer(
        model=base,
        args=build_arguments("rl", TrlSFTConfig, trainer_arguments(config, part, evaluate=False)),
        train_dataset=as_dataset(rows),
        processing_class=tokenizer,
        peft_config=peft_config(policy, config.lora, "CAUSAL_LM") if number == 1 else None,
    )
    train_in_run(trainer, part, label)
    dtype = save_dtype(config.save_dtype, policy) if number == config.rounds else torch.float32
    onto = load_policy(policy) if config.lora and parallel.is_first() else None
    save_trained_model(trainer, tokenizer, part, onto, dtype)
    if parallel.is_first():
        write_atomically(part.path / DONE, "")
        part.remove_checkpoints()
    parallel.broadcast(None)  # the others read what it wrote


def _say(line: str) -> None:
    if parallel.is_first():
        say(line)


def _as_learned(prompt: EncodedPrompt, chosen: Answer) -> EncodedConversation:
    """Exactly what was sampled: the prompt, and the answer with its EOS."""
    mask = [0] * len(prompt.ids) + [1] * len(chosen.token_ids)
    return EncodedConversation(prompt.ids + chosen.token_ids, mask)


def _refuse_nothing(
    best: Sequence[Best], answers: Sequence[Sequence[Answer]], counts: dict[str, int], number: int
) -> None:
    if not best:
        raise DataError(
            f"round {number} of best_of_n: none of {len(answers)} prompts gives a demonstration; of "
            f"{sum(map(len, answers))} answers {counts['answers_cut_off']} were cut off, {counts['answers_blank']} are "
            f"blank and on {counts['answers_without_opinion']} the reward function has no opinion, and "
            f"{counts['prompts_below_least_gain']} prompts have none above rl.least_gain; raise rl.max_response_tokens "
            "or rl.samples_per_prompt, or lower rl.least_gain"
        )


def _figures(answers: Sequence[Sequence[Answer]], best: Sequence[Best]) -> dict[str, float]:
    """Of a round: means over the answers that were scored, and over the prompts whose best one is learned."""
    every = [each for group in answers for each in group]
    return {
        "score": statistics.fmean(each.score for each in every if each.score is not None),
        "best_score": statistics.fmean(each.score for each in best),
        "response_tokens": statistics.fmean(len(each.token_ids) for each in every),
        "truncated_share": sum(not each.ended for each in every) / len(every),
        "demonstrations": len(best),
    }


def _heldout_figures(
    before: Sequence[Sequence[Answer]], after: Sequence[Sequence[Answer]]
) -> dict[str, float | None]:
    """Mean scores of held-out answers and their difference, with an interval over prompts (from ten on)."""
    sums = np.array([[*_sum(b), *_sum(a)] for b, a in zip(before, after, strict=True)], dtype=float)
    total = sums.sum(axis=0)
    gain: Estimate | None = Bootstrap(len(sums)).estimate(
        sums, lambda s: s[..., 2] / s[..., 3] - s[..., 0] / s[..., 1], int(total[3])
    )
    every = [each for group in after for each in group]
    return {
        "heldout_reward_before": float(total[0] / total[1]) if total[1] else None,
        "heldout_reward": float(total[2] / total[3]) if total[3] else None,
        "heldout_reward_gain": gain.value if gain else None,
        "heldout_reward_gain_low": gain.low if gain else None,
        "heldout_reward_gain_high": gain.high if gain else None,
        "heldout_response_tokens": statistics.fmean(len(each.token_ids) for each in every),
        "heldout_truncated_share": sum(not each.ended for each in every) / len(every),
    }


def _sum(group: Sequence[Answer]) -> tuple[float, int]:
    scores = [each.score for each in group if each.score is not None]
    return sum(scores), len(scores)


def _kl(
    model: Model, reference: Model, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Answer]],
    temperature: float,
) -> float:  # fmt: skip
    """The mean of log p(answer) - log q(answer) over the model's answers, in nats: its KL from the reference."""
    asked = [prompt.ids for prompt, group in zip(prompts, answers, strict=True) for _ in group]
    said = [each.token_ids for group in answers for each in group]
    of_model, of_reference = (
        [
            float(each.sum())
            for each in token_log_probabilities(load_policy(which).eval(), asked, said, temperature)
        ]
        for which in (model, reference)
    )
    return statistics.fmean(of_model) - statistics.fmean(of_reference)
