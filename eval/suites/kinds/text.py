"""Plain texts: how well a model predicts them, in bits per byte.

    {"id": "rt001", "group": "recipe", "text": "Wash the lentils until the water runs clear. ..."}

What a model forgets in fine-tuning shows as text that it used to predict and no longer does. Each text is scored as a
document of its own, from its first token on. Bits per byte of UTF-8 (as in The Pile, Gao et al. 2020,
https://arxiv.org/abs/2101.00027, section 3.1) do not depend on the tokenizer, as perplexity per token does: two
models that give a text of 8 bytes the probability 2^-16 both have 2 bits per byte, while one that cuts it into 2 tokens
has a perplexity of 2^8 per token, and one that cuts it into 4 has 2^4.

The metric is a quotient of sums: bits of all texts over bytes of all texts. So a text counts by its length, as in one
long file: 10 bits in 10 bytes and 90 bits in 30 bytes are 100/40 = 2.5 bits per byte, not (1 + 3)/2 = 2.
"""

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from eval.likelihood.log_likelihood import Item, LogLikelihood
from eval.suites.kind import ByLikelihood, Encode, Ratio, SuiteRow, Value
from eval.suites.metrics import QUALITY, Metric


class TextRow(SuiteRow):
    """One text; `group` is its register."""

    text: str = Field(min_length=1)


def _items(row: TextRow, encode: Encode) -> Sequence[Item]:
    return [Item("", (row.text,))]


def _values(row: TextRow, scores: Sequence[Sequence[LogLikelihood]]) -> Mapping[str, Value]:
    return {"bits_per_byte": Ratio(-scores[0][0].nats / math.log(2), len(row.text.encode()))}


KIND = ByLikelihood(
    row=TextRow,
    metrics=(
        Metric(
            "bits_per_byte", "Bits per byte", "bits per byte", "texts",
            "how badly the model predicts plain text, whatever its tokenizer", QUALITY, direction="lower",
        ),
    ),
    items=_items,
    values=_values,
)  # fmt: skip
