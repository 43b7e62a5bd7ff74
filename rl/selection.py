"""Which of the policy's answers become demonstrations: the best of each prompt."""

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    token_ids: list[int]
    """Its EOS included, where it ended by itself."""
    seed: int
    ended: bool
    """False: max_response_tokens cut it off."""
    text: str
    score: float | None
    """None: a reward function has no opinion, or was not asked."""

    @property
    def may_be_learned(self) -> bool:
        """Not an answer that was cut off, whose end would be learned falsely, nor a blank one.

        What holds the character NUL, which files of demonstrations may not hold, counts as blank.
        """
        return self.ended and bool(self.text.strip()) and "\0" not in self.text


@dataclass(frozen=True)
class Best:
    """The answer of a prompt that scores highest."""

    prompt: int
    """Its index."""
    answer: Answer
    score: float
    others: list[float]
    """The scores of the prompt's other answers that have one."""

    @property
    def gain(self) -> float | None:
        """How far it is above the others' mean; None where there are none."""
        return self.score - statistics.fmean(self.others) if self.others else None


def choose_best(
    answers: Sequence[Sequence[Answer]], keep_fraction: float, least_gain: float | None, seed: str
) -> tuple[list[Best], dict[str, int]]:
    """The best answers to learn, in the order of the prompts, and what was left out, by reason.

    Args:
        answers: of each prompt.
        keep_fraction: the share of the best answers that is kept, at least one, those with the highest scores.
        least_gain: how far a best answer must be above the mean of its prompt's others.
        seed: decides between answers, and between prompts, of equal score.
    """
    counts = Counter(
        answers_cut_off=sum(not each.ended for group in answers for each in group),
        answers_blank=sum(each.ended and not each.may_be_learned for group in answers for each in group),
        answers_without_opinion=sum(
            each.may_be_learned and each.score is None for group in answers for each in group
        ),
    )
    best = []
    for prompt, group in enumerate(answers):
        scored = [each for each in group if each.may_be_learned and each.score is not None]
        if not scored:
            continue
        chance = random.Random(f"{seed}/{prompt}")
        place = max(range(len(scored)), key=lambda i: (scored[i].score, chance.random()))
        scores = [each.score for each in scored if each.score is not None]
        best.append(Best(prompt, scored[place], scores.pop(place), scores))
    counts["prompts_without_answer"] = len(answers) - len(best)
    kept = [
        each for each in best if least_gain is None or (each.gain is not None and each.gain >= least_gain)
    ]
    counts["prompts_below_least_gain"] = len(best) - len(kept)
    chance = random.Random(seed)
    by_score = sorted(kept, key=lambda each: (-each.score, chance.random()))
    highest = by_score[: max(1, round(keep_fraction * len(kept)))]
    counts["prompts_below_keep_fraction"] = len(kept) - len(highest)
    return sorted(highest, key=lambda each: each.prompt), dict(counts)
