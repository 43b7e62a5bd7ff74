"""The models behind a judge: one computed here, or one behind a URL. Both answer a question with one of some labels."""

import functools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from accord.chat.tokens import encode_prompt
from accord.endpoint import Endpoint
from accord.errors import AccordError, DataError, UsageError
from accord.models.loading import load_policy
from accord.models.references import Model
from accord.progress import progress
from accord.records import Message

logger = logging.getLogger("accord.reward.judge")

TOKENS_OF_A_REPLY = 8
LITTLE = 0.5
"""A judge here that gives the verdicts together less probability than this is reported."""


@dataclass(frozen=True)
class LabelShares:
    """A reply to one question: each label's share of the probability that all labels have, and that probability."""

    shares: dict[str, float]
    probability: float | None
    """None where the server does not tell; the one label of its reply then has the whole share."""


class LocalModel:
    """A chat model that is computed here, in float32: its probabilities of the verdicts as the next token."""

    def __init__(self, model: Model, questions_per_batch: int) -> None:
        self.found = model
        self.questions_per_batch = questions_per_batch
        self._warned = False

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's own; all that is asked of it is a chat template.

        Raises:
            UsageError: it has none.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.found.folder)
        if not tokenizer.chat_template:
            raise UsageError(f"{self.found.reference} has no chat template, so it cannot be asked to judge")
        return tokenizer

    @functools.cached_property
    def model(self) -> Any:
        """In float32, on the device where scores are computed."""
        import torch

        model: Any = load_policy(self.found)
        return model.to(torch.accelerator.current_accelerator() or torch.device("cpu")).eval()

    @functools.cached_property
    def special_tokens(self) -> list[str]:
        """The tokens that a text must not contain, the longest first."""
        added = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return sorted({t for t in (*added, *self.tokenizer.all_special_tokens) if len(t) > 1}, key=len)[::-1]

    def defuse(self, text: str) -> str:
        """The text with a space inside what the tokenizer, or another one, would take for the end of a turn."""
        for token in self.special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return defuse(text)

    def ask(self, questions: Sequence[str], labels: Sequence[str]) -> list[LabelShares | None]:
        """The verdict on each question: never None, as the probabilities of all labels are known.

        Raises:
            DataError: a question is longer than the model's context.
        """
        import torch

        rows = [encode_prompt(self.tokenizer, [Message(role="user", content=each)]) for each in questions]
        limit = getattr(self.model.config, "max_position_embeddings", math.inf)
        longest = max(map(len, rows), default=0)
        if longest > limit:
            raise DataError(
                f"a question to the judge has {longest} tokens and {self.found.reference} reads {limit}; judge "
                "shorter conversations, or take a judge with a longer context"
            )
        ids_of_label = self._ids(labels)
        verdicts: dict[int, LabelShares] = {}
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with progress("judging", len(rows)) as update:
            for start in range(0, len(rows), self.questions_per_batch):
                chosen = by_length[start : start + self.questions_per_batch]
                probabilities = self._next_token_probabilities([rows[i] for i in chosen])
                masses = torch.stack([probabilities[:, ids].sum(-1) for ids in ids_of_label], -1)
                for i, mass in zip(chosen, masses.tolist(), strict=True):
                    if not (math.isfinite(sum(mass)) and sum(mass) > 0):
                        raise AccordError(
                            f"the judge {self.found.reference} gave a probability that is no number"
                        )
                    shares = {label: each / sum(mass) for label, each in zip(labels, mass, strict=True)}
                    verdicts[i] = LabelShares(shares, sum(mass))
                update(len(verdicts))
        usual = mean(each.probability or 0.0 for each in verdicts.values()) if verdicts else 1.0
        if usual < LITTLE and not self._warned:
            self._warned = True
            logger.warning(
                f"the judge {self.found.reference} gives the replies {', '.join(labels)} together only {usual:.1%} "
                "probability: it would rather say something else, so do not trust its verdicts much"
            )
        return [verdicts[i] for i in range(len(rows))]

    def last_reply(self, question: str) -> str:
        """Nothing: its replies can always be read."""
        return ""

    def _next_token_probabilities(self, rows: list[list[int]]) -> Any:
        """[rows, vocabulary], in double precision; padded on the left, so that all end at the last place."""
        import torch

        width = max(map(len, rows))
        device = self.model.device
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False
            ).logits[:, -1]
        return torch.softmax(logits.double(), -1)

    @functools.cache  # noqa: B019
    def _ids(self, labels: tuple[str, ...]) -> list[list[int]]:
        """For each label, every token that says it, with or without white space around it."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        found = [[i for i, text in enumerate(texts) if text.strip() == label] for label in labels]
        for label, ids in zip(labels, found, strict=True):
            if not ids:
                raise UsageError(
                    f"{self.found.reference} has no single token for '{label}', so it cannot judge here; serve it, and "
                    "name the server with judge:https://host/v1#model-name"
                )
        return found


class ServedModel:
    """A chat model behind an OpenAI-compatible URL; its probabilities where the server gives them, else its word."""

    def __init__(self, endpoint: Endpoint, name: str, requests_at_a_time: int) -> None:
        self.endpoint = endpoint
        self.name = name
        self.requests_at_a_time = requests_at_a_time
        self._tells_probabilities = True
        self._unread: dict[str, str] = {}

    def defuse(self, text: str) -> str:
        """The text with a space inside what most tokenizers would take for the end of a turn."""
        return defuse(text)

    def ask(self, questions: Sequence[str], labels: Sequence[str]) -> list[LabelShares | None]:
        """The verdict on each question; None where the reply cannot be read.

        Raises:
            AccordError: the server does not answer, refuses, or does not speak the protocol.
        """
        return self.endpoint.in_parallel(
            lambda question: self._ask_one(question, labels), questions, self.requests_at_a_time, "judging"
        )

    def last_reply(self, question: str) -> str:
        """What the latest unreadable reply to a question was."""
        return next((reply for asked, reply in self._unread.items() if asked.startswith(question)), "")

    def _ask_one(self, question: str, labels: Sequence[str]) -> LabelShares | None:
        body = {
            "model": self.name, "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": TOKENS_OF_A_REPLY,
        }  # fmt: skip
        try:
            asks_probabilities = self._tells_probabilities
            more = {"logprobs": True, "top_logprobs": 20} if asks_probabilities else {}
            text, choice, _ = self.endpoint.chat(body | more)
        except AccordError as error:
            if not asks_probabilities or "logprobs" not in str(error):
                raise
            self._tells_probabilities = False
            text, choice, _ = self.endpoint.chat(body)
        try:
            tokens = (choice.get("logprobs") or {}).get("content") or []
            verdict = read_reply(text, tokens, labels)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.endpoint.no_completion(error) from None
        if verdict is None:
            self._unread[question] = text
        return verdict


def read_reply(text: str, tokens: Sequence[dict[str, Any]], labels: Sequence[str]) -> LabelShares | None:
    """What a reply says, None if it says anything but one label.

    Args:
        text: such as "B", "**B**" or "Answer: B."; a sentence that begins with "A" is none.
        tokens: OpenAI's `logprobs.content`, empty where the server gives none.
        labels: what may be said.
    """
    said = re.fullmatch(
        rf"\W*(?:(?:the )?(?:better )?(?:answer|verdict|grade|rating|score)(?: is)?\W*)?({'|'.join(labels)})\W*",
        text, re.IGNORECASE,
    )  # fmt: skip
    if said is None:
        return None
    label = said[1].upper()
    place = next((token for token in tokens if token["token"].strip() == label), None)
    if place is not None:
        masses = {
            each: math.fsum(
                math.exp(top["logprob"]) for top in place["top_logprobs"] if top["token"].strip() == each
            )
            for each in labels
        }
        if (total := math.fsum(masses.values())) > 0:
            return LabelShares({each: mass / total for each, mass in masses.items()}, total)
    return LabelShares({each: float(each == label) for each in labels}, None)


def defuse(text: str) -> str:
    """The text with spaces inside the signs that most chat templates end a turn with."""
    for token in ("<|", "|>", "[INST]", "[/INST]", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
