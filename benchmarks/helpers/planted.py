"""Answers whose worth is known, and annotators of known reliability: what reward models are tried on."""

import math
from collections.abc import Sequence

import numpy as np

from accord.bundled import data_path
from accord.records import Comparison, Prompt, Ranking, Response, read_jsonl

GOOD = (
    "First write down the one thing you want to change.", "Start small, with ten minutes a day.",
    "Ask a friend to check what you have done so far.", "Then compare the result with what you hoped for.",
    "Keep the receipt, in case it does not fit.", "Test it on a corner that nobody sees.",
    "Set a timer, so that you do not forget it.", "Read the label before you mix anything.",
    "If it hurts, stop and see a doctor.", "Measure twice and cut once.",
)  # fmt: skip
NEUTRAL = (
    "Many people wonder about this.", "It is often talked about at dinner.", "There are several opinions on it.",
    "My neighbour once had the same question.", "The weather plays no part in it.", "Some call it by another name.",
    "It has been like that for years.", "You may have heard of it before.",
    "It comes in more than one colour.", "Most shops close in the evening.",
)  # fmt: skip
BAD = (
    "I do not care, so find out yourself.", "Just guess, nobody will notice.", "That is a silly thing to ask.",
    "Throw it all away and give up.", "Whatever you do will go wrong.", "Trust every stranger who calls you.",
    "Facts are boring, so I made some up.", "Skip the safety part, it only takes time.",
    "Blame somebody else for it.", "The answer is banana banana banana.",
)  # fmt: skip
VALUES = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(NEUTRAL, 0.0), **dict.fromkeys(BAD, -1.0)}
SLOPES = {"ann-1": 2.0, "ann-2": 2.0, "ann-3": 1.5, "ann-4": 0.0, "ann-5": -1.5}
"""How far each annotator's rankings follow the worth: one guesses, and one takes the scale for upside down."""
WORTH_DEVIATION = 1.2


def quality(text: str) -> float:
    """The sum of the values of an answer's sentences, in standard deviations."""
    return sum(VALUES[sentence + "."] for sentence in text.rstrip(".").split(". ")) / WORTH_DEVIATION


def prompts(count: int) -> list[Prompt]:
    """The demo's prompts, and again with a number where more are wanted."""
    found = read_jsonl(data_path("bundled:demo/prompts.train.jsonl"), Prompt)
    again = [found[i % len(found)] for i in range(count)]
    return [
        each
        if i < len(found)
        else each.model_copy(
            update={
                "prompt": [each.prompt[0].model_copy(update={"content": f"({i}) {each.prompt[0].content}"})]
            }
        )
        for i, each in enumerate(again)
    ]


def answers(chance: np.random.Generator, count: int, sentences: tuple[int, int] = (1, 4)) -> list[str]:
    """Different answers of so many sentences, drawn from all of the above."""
    pool = list(VALUES)
    found: list[str] = []
    while len(found) < count:
        number = int(chance.integers(sentences[0], sentences[1] + 1))
        text = " ".join(chance.choice(pool, number, replace=False))
        if text not in found:
            found.append(text)
    return found


def ranks(chance: np.random.Generator, worths: Sequence[float], slope: float) -> list[int]:
    """One annotator's ranking: Plackett and Luce's model, by sorting worths with Gumbel noise."""
    noisy = slope * np.asarray(worths) + chance.gumbel(size=len(worths))
    order = np.argsort(-noisy)
    found = np.empty(len(worths), int)
    found[order] = np.arange(1, len(worths) + 1)
    return [int(rank) for rank in found]


def comparisons(
    chance: np.random.Generator,
    count: int,
    responses: int,
    length_slope: float = 0.0,
    annotators_each: int = 3,
) -> list[Comparison]:
    """Ranked comparisons; `length_slope` is what a difference of 1 in log length is worth to everybody."""
    rows = []
    for i, prompt in enumerate(prompts(count)):
        texts = answers(chance, responses)
        worths = [quality(text) + length_slope * math.log(len(text)) for text in texts]
        who = chance.choice(list(SLOPES), annotators_each, replace=False)
        rows.append(
            Comparison(
                id=f"c-{i}", prompt=prompt.prompt,
                responses=[Response(text=text, run="planted", seed=0) for text in texts],
                rankings=[Ranking(annotator=name, ranks=ranks(chance, worths, SLOPES[name])) for name in who],
                display_order=chance.permutation(responses).tolist(),
            )
        )  # fmt: skip
    return rows
