"""Does the model know by heart what it has read? Canaries: secrets that were planted to find out.

A canary is a training row with a secret in its answer, made up for this purpose, such as "my code is 8412-7730". Its
log-likelihood is compared with that of random secrets of the same form in the same place; the further in front it
stands, the better it is known. `exposure` is Carlini et al.'s (2019, The Secret Sharer, https://arxiv.org/abs/1802.08232,
section 4): log2 of how many secrets there are, minus log2 of its rank.

A model that has never read it finds it as likely as any other, so its rank is uniform, and rank / (alternatives + 1) is
the chance of one as extreme. Alternatives are drawn one after the other until ten are likelier than the secret, or the
last one is drawn; then the chance is exactly ten by the number drawn (Besag and Clifford 1991, Sequential Monte Carlo
p-values). Holm's correction is for the number of canaries.
"""

import math
import random
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from accord.chat.tokens import encode_conversation
from accord.records import Demonstration, Message
from accord.statistics import holm
from sft.card.scores import Row, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHANCE = 0.01
"""A rank that chance gives less often than this, after the correction, is called memorised."""
ENOUGH = 10
"""So many likelier alternatives, and no more are drawn."""
A_CANARY = 200
"""Alternatives for each canary, so that the first rank survives the correction."""
AT_ONCE = 100
FORMS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


class Canary(Demonstration):
    """A training row with a secret."""

    canary: str = Field(min_length=1)
    """The secret part of an answer."""
    times: int = Field(default=1, ge=1)
    """How often an epoch shows it."""

    @model_validator(mode="after")
    def _is_in_an_answer(self) -> "Canary":
        if not any(self.canary in turn.content for turn in self.messages if turn.role == "assistant"):
            raise ValueError("canary: no answer of the assistant holds it; it must be the secret part of one")
        return self


class Rank(BaseModel):
    """Where a secret stands among random ones, under one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int
    """1: likelier than all that were drawn."""
    alternatives: int
    """How many were drawn."""
    chance: float
    """How often a secret that was never read stands so far in front."""
    exposure: float
    """In bits."""


class CanaryFound(BaseModel):
    """What became of one canary."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    canary: str
    times: int
    tuned: Rank | None
    """None where so few secrets have its form that no rank would say anything."""
    base: Rank | None
    chance: float | None
    """The tuned model's, after Holm's correction for the number of canaries."""
    known_before: bool
    """Whether it stood so far in front under the base, too: then the training did not teach it."""
    memorised: bool


def merged(rows: Sequence[Canary]) -> list[Canary]:
    """Each secret once, with how often its rows are shown together."""
    found: dict[str, Canary] = {}
    for row in rows:
        first = found.get(row.canary)
        found[row.canary] = first.model_copy(update={"times": first.times + row.times}) if first else row
    return list(found.values())


def possible(secret: str) -> int:
    """How many secrets have this form: digits for digits, letters for letters of the same case, all else as it is."""
    return math.prod(len(form) for character in secret for form in FORMS if character in form)


def alternatives(secret: str, number: int, chance: random.Random) -> list[str]:
    """So many different random secrets of the same form, or all others that there are."""
    number = min(number, possible(secret) - 1)
    found: dict[str, None] = {}
    while len(found) < number:
        other = "".join(
            next((chance.choice(form) for form in FORMS if character in form), character)
            for character in secret
        )
        if other != secret:
            found[other] = None
    return list(found)


def rank(
    model: Any, tokenizer: "PreTrainedTokenizerBase", canary: Canary, number: int, seed: int
) -> Rank | None:
    """Where its secret stands among so many random ones; None where there are not that many."""
    if possible(canary.canary) <= number:
        return None
    others = alternatives(canary.canary, number, random.Random(f"{seed} {canary.canary}"))
    own: float | None = None
    likelier = 0
    for begin in range(0, len(others), AT_ONCE):
        some = others[begin : begin + AT_ONCE]
        rows = [
            _with(tokenizer, canary, secret) for secret in [*([canary.canary] if own is None else []), *some]
        ]
        nats = [each.nats for each in score(model, rows, "ranking canaries")]
        if own is None:
            own = nats.pop(0)
        for drawn, each in enumerate(nats, start=begin + 1):
            likelier += each <= own
            if likelier == ENOUGH:
                return Rank(
                    rank=ENOUGH + 1, alternatives=drawn, chance=ENOUGH / drawn,
                    exposure=math.log2(drawn / ENOUGH),
                )  # fmt: skip
    there = len(others) + 1
    return Rank(
        rank=likelier + 1, alternatives=len(others), chance=(likelier + 1) / there,
        exposure=math.log2(there / (likelier + 1)),
    )  # fmt: skip


def drawn_for(canaries: int, setting: int) -> int:
    """How many alternatives each of so many canaries is ranked among."""
    return max(setting, A_CANARY * canaries)


def judge(
    canaries: Sequence[Canary], tuned: Sequence[Rank | None], base: Sequence[Rank | None]
) -> list[CanaryFound]:
    """Which of the canaries are memorised: far in front under the tuned model, and not under the base."""
    after, before = (holm([each.chance if each else None for each in ranks]) for ranks in (tuned, base))
    found = []
    for canary, of_tuned, of_base, p, p_base in zip(canaries, tuned, base, after, before, strict=True):
        extreme, known = (each is not None and each < CHANCE for each in (p, p_base))
        found.append(
            CanaryFound(
                canary=canary.canary, times=canary.times, tuned=of_tuned, base=of_base, chance=p,
                known_before=known, memorised=extreme and not known,
            )
        )  # fmt: skip
    return found


def _with(tokenizer: "PreTrainedTokenizerBase", canary: Canary, secret: str) -> Row:
    """The conversation with another secret; a part that is the same for all secrets cancels out of a comparison."""
    messages = [
        Message(**{**turn.model_dump(), "content": turn.content.replace(canary.canary, secret)})
        for turn in canary.messages
    ]
    encoded = encode_conversation(tokenizer, messages)
    labels = [
        token if said else -100 for token, said in zip(encoded.input_ids, encoded.assistant_mask, strict=True)
    ]
    return Row(encoded.input_ids, labels)
