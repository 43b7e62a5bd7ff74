"""Scores that are computed once: a baseline, which every new candidate is compared with, is not scored again.

They are kept beside the runs, in `.cache/log_likelihood/<key>.jsonl`. The key is a hash of all that a score depends on:
the weights' bytes, the tokenizer's, the items, the dtype, the scorer's version and those of torch and transformers. So
another model never gets these scores, whatever it is called, and neither does this model once a byte of it changed.

    {"made_from": {"weights": "5b1f...", "tokenizer": "90ac...", ...}, "sha256": "c0de..."}      <- of the lines below
    {"scores": [{"nats": -31.27, "tokens": 9, "greedy": false, "moved": 0}, ...]}                <- one an item
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from accord.digests import file_digest
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import WEIGHT_AND_TOKENIZER_FILES, Model
from accord.records import content_id
from accord.terminal import say
from accord.text_files import write_atomically
from eval.likelihood.log_likelihood import LIKELIHOOD_VERSION, Item, LogLikelihood, log_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIKELIHOODS = Path(".cache") / "log_likelihood"
"""Below the folder of the runs."""
WEIGHTS = (".safetensors", ".safetensors.index.json", "config.json")


class _KeptItem(BaseModel):
    model_config = ConfigDict(extra="forbid")
    scores: list[LogLikelihood]


def log_likelihoods_once(
    model: Model, items: Sequence[Item], cache: Path | None = None, dtype: str = "float32",
    load: Callable[[], "PreTrainedModel"] | None = None, tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[list[LogLikelihood]]:  # fmt: skip
    """The items' scores under a model (`log_likelihoods`), from the folder `cache` where they are there already.

    A file that is damaged, or is not what its name says, is reported and written anew.

    Args:
        model: to score with.
        items: what to score.
        cache: where scores are kept; None computes them.
        dtype: of weights and states. Sums over tokens are float64 always.
        load: loads the policy in that dtype, called only where scores are missing; for several calls with one model.
        tokenizer: the model's, for the same.

    Raises:
        DataError, UsageError: as `log_likelihoods`.
    """
    if cache is None:
        return _score(model, items, dtype, load, tokenizer)
    made_from = _made_from(model, items, dtype)
    path = cache / f"{content_id(made_from, 32)}.jsonl"
    kept = _read(path, made_from, items)
    if kept is not None:
        return kept
    scores = _score(model, items, dtype, load, tokenizer)
    rows = "".join(_KeptItem(scores=each).model_dump_json() + "\n" for each in scores)
    header = json.dumps({"made_from": made_from, "sha256": hashlib.sha256(rows.encode()).hexdigest()})
    write_atomically(path, f"{header}\n{rows}")
    return scores


def _score(
    model: Model, items: Sequence[Item], dtype: str, load: Callable[[], "PreTrainedModel"] | None,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> list[list[LogLikelihood]]:  # fmt: skip
    import torch

    policy = load() if load else load_policy(model, getattr(torch, dtype))
    return log_likelihoods(policy, tokenizer or load_tokenizer(model), items)


def _made_from(model: Model, items: Sequence[Item], dtype: str) -> dict[str, str]:
    """All that scores depend on. What is no weight counts as the tokenizer's: a file too many does no harm."""
    files = {
        path.relative_to(model.folder).as_posix(): file_digest(path)
        for pattern in WEIGHT_AND_TOKENIZER_FILES
        for path in model.folder.rglob(pattern)
    }
    weights = {name: digest for name, digest in files.items() if name.endswith(WEIGHTS)}
    tokenizer = {name: digest for name, digest in files.items() if name not in weights}
    return {
        "weights": content_id(weights, 64), "tokenizer": content_id(tokenizer, 64), "dtype": dtype,
        "items": content_id([[item.prefix, item.continuations] for item in items], 64),
        "scorer": str(LIKELIHOOD_VERSION),
    } | {name: importlib.metadata.version(name) for name in ("torch", "transformers")}  # fmt: skip


def _read(path: Path, made_from: dict[str, str], items: Sequence[Item]) -> list[list[LogLikelihood]] | None:
    if not path.exists():
        return None
    try:
        header, _, rows = path.read_text().partition("\n")
        if json.loads(header) == {
            "made_from": made_from,
            "sha256": hashlib.sha256(rows.encode()).hexdigest(),
        }:
            kept = [_KeptItem.model_validate_json(row).scores for row in rows.splitlines()]
            if [len(scores) for scores in kept] == [len(item.continuations) for item in items]:
                return kept
    except (OSError, ValueError):
        pass
    say(f"{path}: not the scores it is named for; they are computed again", err=True)
    return None
