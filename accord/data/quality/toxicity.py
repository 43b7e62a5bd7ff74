"""How toxic texts are: the probability, from 0 to 1, that the linear model over words of alt-profanity-check gives.

It was trained on 200,000 comments that people labelled, and knows words, not what is meant: it overlooks polite
contempt ("Nobody wants you here": 0.08) and takes some names of groups for insults ("He is a gay man": 0.95), as its
training comments did. Its model is a pickle, which can run code when it is loaded: it is as safe as the package that it
comes in, and is loaded only where texts are scored.
"""

from collections.abc import Sequence

from accord.data.quality.findings import Finding, learned
from accord.errors import UsageError
from accord.records import Row

TOXIC = 0.5
"""Above this a text is more likely to offend than not."""


def toxicities(texts: Sequence[str]) -> list[float]:
    """The probability, from 0 to 1, that each text is offensive, by the linear model of alt-profanity-check.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from profanity_check import predict_prob
    except ImportError as error:
        raise UsageError(
            f"the scorer of toxicity cannot be loaded ({error}); run: pip install alt-profanity-check==1.9.1"
        ) from None
    return [float(probability) for probability in predict_prob(list(texts))] if texts else []


def toxic_answers(rows: Sequence[Row]) -> list[Finding]:
    """Rows that teach an answer which is toxic; what it says is not repeated."""
    texts = [(i, text) for i, row in enumerate(rows) for text in learned(row)]
    worst: dict[int, float] = {}
    for (i, _), toxicity in zip(texts, toxicities([text for _, text in texts]), strict=True):
        worst[i] = max(toxicity, worst.get(i, 0.0))
    return [
        Finding("toxicity", i, f"an answer is toxic with probability {toxicity:.2f}")
        for i, toxicity in worst.items()
        if toxicity > TOXIC
    ]
