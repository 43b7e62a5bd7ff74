"""What a kind of suite is: the columns of its items, what the models are asked, and what the outcomes are worth.

A kind is a module of eval/suites/kinds with one constant `KIND`, or stands in a user's file (docs/extend.md). There are
two sorts. The items of a kind `ByLikelihood` are texts whose log-likelihoods say what a model holds likely: exact, and
nothing is sampled. Those of an `Answered` kind are prompts, which both models answer with the same seeds. Either way, a
kind turns one item's outcome under one model into values by metric, as a pure function; the gate compares the values of
both models item by item.

A metric is the mean of its items' values, or, for a `Ratio`, the sum of numerators over the sum of denominators; for a
list of these, which every item then has, the mean of the quotients. An item that has no value of a metric (an ambiguous
question has none of "accuracy where the text tells") is left out of that metric, under both models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import Field

from accord.records import Message, Row
from eval.likelihood.log_likelihood import Item, LogLikelihood
from eval.suites.metrics import Metric

Rated = Literal["refusals", "toxicity"]
RULES: dict[Rated, str] = {
    "refusals": "a rule of English phrases",
    "toxicity": "a linear model over their words",
}
"""What says so by default, as the metrics' meanings have it."""


class SuiteRow(Row):
    """The columns that items of every kind have."""

    id: str = Field(min_length=1)
    template: str | None = None
    """Items made from one template are not independent and are resampled together; None for an item of its own."""
    group: str | None = None
    """For the differences by group."""


class Reply(Row):
    """A model's answer to one prompt of a suite, as sampled; `tokens` counts it without its EOS."""

    text: str
    tokens: int
    finish: Literal["eos", "length"]
    reward: float | None = None
    """By the evaluation's reward model, for the kinds that ask for it and where there is one."""
    rated: float | None = None
    """How probably it is what the kind `rates`, where a classifier or a judge says that in place of the rule."""


class Ratio(NamedTuple):
    """One item's part of a quotient of sums."""

    numerator: float
    denominator: float


Value = float | Ratio | list[Ratio]
"""The last for a mean of several quotients, such as one a class."""
R = TypeVar("R", bound=SuiteRow)
Encode = Callable[[Sequence[Message]], tuple[int, ...]]
"""A conversation's token ids up to where the assistant's answer begins, by the model's own template."""


@dataclass(frozen=True)
class ByLikelihood(Generic[R]):
    """A kind whose items are scored by log-likelihood."""

    row: type[R]
    metrics: tuple[Metric, ...]
    """Named without the suite."""
    items: Callable[[R, Encode], Sequence[Item]]
    """What to score for one row."""
    values: Callable[[R, Sequence[Sequence[LogLikelihood]]], Mapping[str, Value]]
    """A row and its items' scores, to its values by metric."""


@dataclass(frozen=True)
class Answered(Generic[R]):
    """A kind whose prompts the models answer."""

    row: type[R]
    metrics: tuple[Metric, ...]
    prompts: Callable[[R], Sequence[Sequence[Message]]]
    """What to ask for one row; all of a row's prompts are sampled with the same seed."""
    values: Callable[[R, Sequence[Reply]], Mapping[str, Value]]
    """A row and the replies to its prompts, to its values by metric."""
    wants_reward: bool = False
    """Whether the replies are to be scored by the evaluation's reward model."""
    rates: Rated | None = None
    """What a classifier or a judge may say of the replies, if the evaluation names one (`eval.raters`)."""


Kind = ByLikelihood[Any] | Answered[Any]
