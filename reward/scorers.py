"""One way to name what scores answers, wherever a score is wanted: `scorer_of(reference, runs)`.

    run:reward-0123456789ab, a folder, a hub id     a reward model, in its own units
    vllm:http://127.0.0.1:8000#run:reward-0123...   the same, computed by a vLLM server (docs/score-answers.md)
    judge:run:sft-..., judge:https://host/v1#name   a chat model's grade, 1 to 5 (`reward.judge`)
    rewards.py:brevity, my_package.rewards:brevity  a Python function (`reward.function`)

Scores of different kinds have different units and must not be compared.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accord.endpoint import Endpoint
from accord.errors import AccordError, UsageError
from accord.models.loading import load_tokenizer
from accord.models.references import Model, resolve
from accord.records import Message
from accord.runs import Runs
from reward.function import Columns, RewardFunction, load_reward_function
from reward.judge import PREFIX as JUDGE
from reward.judge import Judge, judge_of

VLLM = "vllm:"
VLLM_KEY = "VLLM_API_KEY"

Conversations = Sequence[Sequence[Message]]
FindModel = Callable[[str, Runs], Model]


@dataclass(frozen=True)
class Scorer:
    """Something that scores conversations, and what identifies it: a `runs.Source`."""

    reference: str
    digest: str
    score: Callable[[Conversations], list[float]]
    """A finite number for the last turn of each conversation; nothing is loaded before the first call.

    A function that has no opinion on one of them is an error here; `opinions` takes it as it is.
    """
    run_id: str | None = None
    function: RewardFunction | None = None
    """Where the scorer is a Python function: training tells it more than the conversation."""
    judge: Judge | None = None
    """Where the scorer is a judge: it can compare, too."""
    score_by_head: Callable[[Conversations], list[list[float]]] | None = None
    """Where the scorer is a reward model computed here: the scores of all its heads, whose mean is the score."""

    def opinions(self, conversations: Conversations, columns: Columns | None = None) -> list[float | None]:
        """The same with None where a function has no opinion; it gets the other columns of the rows, too."""
        if self.function is None:
            return list(self.score(conversations))
        return self.function(
            [each[:-1] for each in conversations], [each[-1].text for each in conversations], columns
        )


def scorer_of(
    reference: str, runs: Runs, conversations_at_a_time: int = 16, find: FindModel = resolve
) -> Scorer:
    """What a reference names: a reward model, a judge or a Python function.

    Args:
        reference: see above.
        runs: where `run:...` is looked for.
        conversations_at_a_time: computed as one batch, or sent to a server together.
        find: finds models; with `accord.models.references.locate`, all is looked at but the weights.

    Raises:
        UsageError: it names nothing that scores.
        TamperedError: the run's weights were changed after it finished.
    """
    if re.match(rf"{JUDGE}[:@]", reference):
        judge = judge_of(reference, runs, conversations_at_a_time, find)
        return Scorer(reference, judge.digest, judge.score, judge=judge)
    if reference.startswith(VLLM):
        return _served(reference, runs, conversations_at_a_time, find)
    if names_a_function(reference):
        function = load_reward_function(reference)
        return Scorer(reference, function.digest, functools.partial(_decided, function), function=function)
    if reference.endswith(".py"):
        raise UsageError(f"'{reference}' names no function; write {reference}:function")
    return scorer_of_model(find(reference, runs), conversations_at_a_time)


def names_a_function(reference: str) -> bool:
    """Whether a reference is of a Python function, in a file or in a module."""
    if reference.startswith(("run:", "bundled:", VLLM)) or re.match(rf"{JUDGE}[:@]", reference):
        return False
    return re.fullmatch(r".+\.py:.*|[\w.]+:\w+", reference) is not None


def scorer_of_model(reward_model: Model, conversations_per_batch: int = 16) -> Scorer:
    """A reward model as a scorer.

    Raises:
        UsageError: the model has no head that scores; a new one would be random.
    """
    check_is_reward_model(reward_model)
    score = functools.partial(_score, reward_model, conversations_per_batch)
    by_head = functools.partial(_score_by_head, reward_model, conversations_per_batch)
    return Scorer(
        reward_model.reference, reward_model.digest, score, reward_model.run_id, score_by_head=by_head
    )


def check_is_reward_model(model: Model) -> None:
    """transformers would give a chat model a random scalar head, and say so in a log only.

    Raises:
        UsageError: the model is none for sequence classification with one label.
    """
    config = _config(model)
    architectures = config.get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise UsageError(
            f"{model.reference} is no reward model (its architecture is {', '.join(architectures) or 'not named'}); "
            f"write judge:{model.reference} to have a chat model grade answers"
        )
    if (labels := len(config.get("id2label") or {}) or config.get("num_labels", 2)) != 1:
        raise UsageError(f"{model.reference} has {labels} labels, and a reward model has one")


def _decided(function: RewardFunction, conversations: Conversations) -> list[float]:
    """What a function says where every answer needs a score."""
    found = function([each[:-1] for each in conversations], [each[-1].text for each in conversations])
    scores = [reward for reward in found if reward is not None]
    if len(scores) < len(found):
        number = found.index(None) + 1
        raise AccordError(
            f"the reward function {function.reference} has no opinion on conversation {number} of {len(found)}, and "
            "a score is needed of each"
        )
    return scores


def _score(reward_model: Model, conversations_per_batch: int, conversations: Conversations) -> list[float]:
    """As `reward.score.score`, which imports torch."""
    from reward.score import score

    return _finite(reward_model.reference, score(reward_model, conversations, conversations_per_batch))


def _score_by_head(
    reward_model: Model, conversations_per_batch: int, conversations: Conversations
) -> list[list[float]]:
    from reward.score import score_by_head

    found = score_by_head(reward_model, conversations, conversations_per_batch)
    _finite(reward_model.reference, [value for heads in found for value in heads])
    return found


def _served(reference: str, runs: Runs, conversations_at_a_time: int, find: FindModel) -> Scorer:
    """`vllm:URL#REWARD MODEL`: the model that the server was started with, whose tokenizer is needed here."""
    url, _, name = reference.removeprefix(VLLM).partition("#")
    if not name:
        raise UsageError(
            f"'{reference}' names no reward model; write {VLLM}{url or 'http://host:port'}#run:<id>"
        )
    endpoint = Endpoint(url, VLLM_KEY)
    model = find(name, runs)
    check_is_reward_model(model)

    def score(conversations: Conversations) -> list[float]:
        from reward.score import encode_to_score

        config = _config(model)
        limit = config.get("max_position_embeddings", math.inf)
        rows = encode_to_score(load_tokenizer(model), conversations, limit)
        batches = [
            rows[i : i + conversations_at_a_time] for i in range(0, len(rows), conversations_at_a_time)
        ]
        scores = endpoint.in_parallel(functools.partial(_ask_vllm, endpoint), batches, 2, "scoring batches")
        # What makes demonstrations score 0 on average is no part of the weights (`reward.score.reward_shift`).
        shift = config.get("reward_shift", 0.0)
        return _finite(reference, [value - shift for batch in scores for value in batch])

    return Scorer(reference, f"{model.digest} served:{endpoint.url}", score)


def _ask_vllm(endpoint: Endpoint, rows: Sequence[list[int]]) -> list[float]:
    """vLLM's scores of rows of token ids, without the sigmoid that it would take of them."""
    response = endpoint.post("/classify", {"input": list(rows), "use_activation": False})
    try:
        data = sorted(response["data"], key=lambda each: each["index"])
        scores = [float(each["probs"][0]) for each in data if len(each["probs"]) == 1]
    except (KeyError, TypeError, ValueError) as error:
        raise AccordError(
            f"{endpoint.url} answered with something that is no classification ({error})"
        ) from None
    if len(scores) != len(rows):
        raise AccordError(f"{endpoint.url} gave {len(scores)} scores for {len(rows)} answers")
    return scores


def _config(model: Model) -> dict[str, Any]:
    return dict(json.loads((model.folder / "config.json").read_text(encoding="utf-8")))


def _finite(reference: str, scores: list[float]) -> list[float]:
    if wrong := [i for i, value in enumerate(scores, start=1) if not math.isfinite(value)]:
        raise AccordError(
            f"the reward model {reference} gave {scores[wrong[0] - 1]} for conversation {wrong[0]}"
        )
    return scores
