"""What is measured of both models: the same rows, prompts, examples and canaries, one model after the other."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from accord.chat.tokens import encode_conversation, encode_prompt
from accord.errors import DataError
from accord.models.references import Model
from accord.records import Demonstration, Message, without_reasoning
from accord.sampling.config import SamplingConfig
from sft.card.answers import Raw, sample
from sft.card.canaries import Canary, Rank, drawn_for, rank
from sft.card.config import CardConfig
from sft.card.data import DataCard
from sft.card.scores import Row, Score, score
from sft.card.tasks import labelled_sources

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from accord.sampling.transformers_sampler import TransformersSampler


@dataclass(frozen=True)
class Material:
    """What a card is made from. A row's source is its column `source`."""

    heldout: Sequence[Demonstration]
    """Conversations that were not trained on."""
    examples: Sequence[Demonstration]
    """Training rows, from which the demonstrations for the base's prompt are drawn."""
    train: "Dataset"
    """All training rows, encoded."""
    documents: "Dataset | None" = None
    """Encoded held-out rows that are no conversations."""
    retention: "Dataset | None" = None
    """Encoded rows of what the model should not forget."""
    canaries: Sequence[Canary] = ()
    data: DataCard | None = None
    sources: Sequence[str] = ()
    """Names, where the column `source` of encoded rows is their number."""
    thinking: Literal["learn", "keep", "cut"] = "learn"
    max_sequence_tokens: int = 10**9


@dataclass
class Outcome:
    """What one model made of the material."""

    alone: list[Score]
    few_shot: dict[int, Score]
    documents: list[Score]
    retention: list[Score]
    samples: list[Raw]
    labels: dict[str, dict[int, Raw]] = field(default_factory=dict)
    """By who answered, then by row."""
    ranks: list[Rank | None] = field(default_factory=list)


@contextlib.contextmanager
def loaded(model: Model, tokenizer: Any, dtype: Any) -> "Iterator[TransformersSampler]":
    """A model in memory, to score and to sample with."""
    from accord.sampling.transformers_sampler import TransformersSampler

    config = SamplingConfig(engine="transformers", dtype=dtype, max_sequence_tokens=10**9, answers_at_once=32)
    sampler = TransformersSampler(model.folder, tokenizer.eos_token_id, config)
    try:
        yield sampler
    finally:
        sampler.close()


def context_of(model: Model) -> int:
    """How many tokens it was made to read."""
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(model.folder).get_text_config()
    return getattr(settings, "max_position_embeddings", None) or 10**9


class Plan:
    """Which rows, prompts and examples are measured: the same for both models."""

    def __init__(
        self,
        config: CardConfig,
        tokenizer: "PreTrainedTokenizerBase",
        material: Material,
        seed: int,
        tuned: Model,
    ) -> None:
        context = context_of(tuned)
        self.config, self.tokenizer, self.material, self.seed = config, tokenizer, material, seed
        rows = _some(material.heldout, config.heldout_rows, seed)
        encoded = [self.encode(row.messages) for row in rows]
        fits = [
            i
            for i, row in enumerate(encoded)
            if len(row.input_ids) <= min(context, material.max_sequence_tokens)
        ]
        self.rows, self.encoded = [rows[i] for i in fits], [encoded[i] for i in fits]
        self.sources = [source_of(row) for row in self.rows]
        self.documents, self.document_sources = _encoded(
            material.documents, config.heldout_rows, seed, material.sources
        )
        self.retention, _ = _encoded(material.retention, config.heldout_rows, seed)
        self.prompts = [encode_prompt(tokenizer, row.messages[:-1]) for row in self.rows]
        self.answer_tokens = [
            len(row.input_ids) - len(prompt) - 1
            for row, prompt in zip(self.encoded, self.prompts, strict=True)
        ]
        self.tasks = labelled_sources(self.rows, self.sources)
        self.label_tokens = {
            source: max(self.answer_tokens[i] for i in rows) + 4 for source, rows in self.tasks.items()
        }
        self.examples = self._examples(context)
        self.behind_examples = self._behind_examples(context)
        room = [i for i, each in enumerate(self.prompts) if len(each) + config.max_response_tokens <= context]
        self.sampled = _some(room, config.samples, seed)

    def encode(self, messages: Sequence[Message]) -> Row:
        """A conversation as it is trained on."""
        thinking = self.material.thinking
        turns = [without_reasoning(turn) for turn in messages] if thinking == "cut" else messages
        encoded = encode_conversation(self.tokenizer, turns, learns_thinking=thinking == "learn")
        labels = [
            token if said else -100
            for token, said in zip(encoded.input_ids, encoded.assistant_mask, strict=True)
        ]
        return Row(encoded.input_ids, labels)

    def _examples(self, context: int) -> list[Demonstration]:
        """Drawn by the seed; none that takes more than its part of half of the model's context."""
        wanted = self.config.few_shot
        found: list[Demonstration] = []
        order = list(range(len(self.material.examples)))
        random.Random(self.seed).shuffle(order)
        for i in order:
            if len(found) == wanted:
                break
            row = self.material.examples[i]
            if row in found or "canary" in (row.model_extra or {}):
                continue
            if len(self.encode(row.messages).input_ids) <= context / (2 * wanted):
                found.append(row)
        return found

    def _with_examples(self, row: Demonstration) -> list[Message]:
        """A conversation that begins with the examples, whose turns are read and not scored."""
        turns = list(row.messages)
        system = [turns.pop(0)] if turns[0].role == "system" else []
        shown = [
            turn.model_copy(update={"weight": 0}) if turn.role == "assistant" else turn
            for example in self.examples
            for turn in example.messages
            if turn.role != "system"
        ]
        return [*system, *shown, *turns]

    def _behind_examples(self, context: int) -> dict[int, Row]:
        if not self.examples:
            return {}
        found = {}
        for i, row in enumerate(self.rows):
            with contextlib.suppress(DataError):  # a template may refuse the two together
                encoded = self.encode(self._with_examples(row))
                if len(encoded.input_ids) <= context:
                    found[i] = encoded
        return found

    def carry_out(self, sampler: "TransformersSampler", is_base: bool) -> Outcome:
        """Score and sample."""
        name = "base" if is_base else "tuned"
        model = sampler.model
        behind = self.behind_examples if is_base else {}
        rows = [*self.encoded, *self.documents, *self.retention, *behind.values()]
        scores = score(model, rows, f"card: scoring with the {name} model")
        ends = [len(self.encoded), len(self.encoded) + len(self.documents)]
        ends += [ends[1] + len(self.retention)]
        found = Outcome(
            scores[: ends[0]],
            dict(zip(behind, scores[ends[2] :], strict=True)),
            scores[ends[0] : ends[1]],
            scores[ends[1] : ends[2]],
            sample(sampler, [self.prompts[i] for i in self.sampled], self.config.max_response_tokens)
            if self.sampled
            else [],
        )
        found.labels[name] = self._labels(
            sampler, {i: self.prompts[i] for rows in self.tasks.values() for i in rows}
        )
        if behind and self.tasks:
            asked = {
                i: encode_prompt(self.tokenizer, self._with_examples(self.rows[i])[:-1])
                for rows in self.tasks.values()
                for i in rows
                if i in behind
            }
            found.labels["few_shot"] = self._labels(sampler, asked)
        number = drawn_for(len(self.material.canaries), self.config.canary_alternatives)
        found.ranks = [
            rank(model, self.tokenizer, canary, number, self.seed) for canary in self.material.canaries
        ]
        return found

    def _labels(self, sampler: "TransformersSampler", prompts: dict[int, list[int]]) -> dict[int, Raw]:
        if not prompts:
            return {}
        limit = max(self.label_tokens.values())
        return dict(zip(prompts, sample(sampler, list(prompts.values()), limit), strict=True))


def source_of(row: Demonstration) -> str:
    """The column `source` of a row."""
    return str((row.model_extra or {}).get("source") or "demonstrations")


def _some(rows: Sequence[Any], at_most: int, seed: int) -> list[Any]:
    return [rows[i] for i in _chosen(len(rows), at_most, seed)]


def _chosen(there: int, at_most: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(there), min(there, at_most)))


def _encoded(
    rows: "Dataset | None", at_most: int, seed: int, names: Sequence[str] = ()
) -> tuple[list[Row], list[str]]:
    """Some encoded rows, and their sources."""
    if rows is None:
        return [], []
    some = rows.select(_chosen(len(rows), at_most, seed))
    sources = some["source"] if "source" in some.column_names else ["documents"] * len(some)
    found = [Row(row["input_ids"], row["labels"]) for row in some]
    return found, [names[int(each)] if names else str(each) for each in sources]
