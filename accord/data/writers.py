"""Who writes: a model that is computed here, or one behind a URL; each reply is noted as soon as it is there."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accord.chat.tokens import without_thinking
from accord.endpoint import KEY, Endpoint
from accord.errors import UsageError
from accord.records import Message, messages_as_dicts

if TYPE_CHECKING:
    from accord.models.references import Model
    from accord.sampling.config import SamplingConfig


@dataclass(frozen=True)
class Request:
    """What is asked."""

    number: int
    messages: list[Message]
    seed: int
    rows: list[int]
    """The places of the seeds in it, the first one foremost."""


@dataclass(frozen=True)
class Reply:
    """What was answered, and what that took."""

    text: str
    finish: Literal["eos", "length", "too_long"]
    """How it ended; `too_long`: the request left no room for an answer, and nothing was asked."""
    prompt_tokens: int | None = None
    tokens: int | None = None
    """None where a server does not tell."""
    seconds: float = 0.0


class Journal:
    """The replies so far, a line each, which outlive a kill; a line that it cut short is forgotten."""

    def __init__(self, path: Path) -> None:
        self.replies: dict[int, Reply] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        for line in whole.splitlines():
            noted = json.loads(line)
            number = noted.pop("number")
            self.replies[number] = Reply(**noted)
        if path.exists():
            os.truncate(path, len(whole) + 1 if whole else 0)
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def note(self, number: int, reply: Reply) -> None:
        """Keep a reply, from any thread."""
        line = json.dumps({"number": number, **asdict(reply)}) + "\n"
        with self._lock:
            self.replies[number] = reply
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        """Nothing can be noted any more."""
        self._file.close()


@dataclass(frozen=True)
class Served:
    """A model behind a URL, as a run's source: what it is called there is all that identifies it."""

    endpoint: Endpoint
    name: str
    run_id: None = None

    @classmethod
    def of(cls, reference: str) -> "Served":
        """Of `https://host/v1#model-name`.

        Raises:
            UsageError: it is no URL, or names no model.
        """
        url, _, name = reference.partition("#")
        if not name:
            raise UsageError(f"'{reference}' names no model; write {url}#model-name")
        return cls(Endpoint(url, KEY), name)

    @property
    def reference(self) -> str:
        """As it is named in records."""
        return f"{self.endpoint.url}#{self.name}"

    digest = reference


def write_here(
    model: "Model", sampling: "SamplingConfig", requests: Sequence[Request], journal: Journal,
    max_response_tokens: int, temperature: float, show: Callable[[int], None],
) -> None:  # fmt: skip
    """Have a model that is computed here answer; vLLM samples, where it is installed.

    What is sampled together is the same after a kill as before it, so that the last digit of a probability is.

    Args:
        model: with a chat template.
        sampling: the engine, and how long prompt and answer may be together.
        requests: all that is asked, also what the journal has already.
        journal: where the replies go.
        max_response_tokens: of an answer.
        temperature: of the sampling.
        show: gets how many were answered by now.
    """
    from accord.chat.tokens import decode_response, encode_prompt
    from accord.models.loading import load_tokenizer
    from accord.sampling.shared import SharedSampler

    tokenizer = load_tokenizer(model)
    encoded = [(request, encode_prompt(tokenizer, request.messages)) for request in requests]
    asked = []
    for request, ids in encoded:
        if len(ids) + max_response_tokens <= sampling.max_sequence_tokens:
            asked.append((request, ids))
        elif request.number not in journal.replies:
            journal.note(request.number, Reply("", "too_long"))
    size = sampling.answers_at_once
    parts = [asked[first : first + size] for first in range(0, len(asked), size)]
    parts = [part for part in parts if any(request.number not in journal.replies for request, _ in part)]
    if not parts:
        return
    with SharedSampler(sampling) as shared:
        sampler = shared.use(model, tokenizer)
        for part in parts:
            started = time.monotonic()
            completions = sampler.sample(
                [ids for _, ids in part],
                [request.seed for request, _ in part],
                max_response_tokens,
                temperature,
            )
            seconds = (time.monotonic() - started) / len(part)
            for (request, ids), completion in zip(part, completions, strict=True):
                if request.number not in journal.replies:
                    text = decode_response(tokenizer, completion.token_ids)
                    reply = Reply(text, completion.finish, len(ids), len(completion.token_ids), seconds)
                    journal.note(request.number, reply)
            show(len(journal.replies))


def write_there(
    served: Served, requests: Sequence[Request], journal: Journal, max_response_tokens: int, temperature: float,
    requests_at_a_time: int,
) -> None:  # fmt: skip
    """Have a model behind a URL answer.

    Raises:
        AccordError: the server does not answer, refuses, or does not speak the protocol.
    """

    def ask(request: Request) -> None:
        started = time.monotonic()
        text, choice, usage = served.endpoint.chat(
            {
                "model": served.name, "messages": messages_as_dicts(request.messages), "temperature": temperature,
                "max_tokens": max_response_tokens, "seed": request.seed,
            }
        )  # fmt: skip
        finish: Literal["eos", "length"] = "length" if choice.get("finish_reason") == "length" else "eos"
        journal.note(
            request.number,
            Reply(
                without_thinking(text).strip(), finish, usage.get("prompt_tokens"), usage.get("completion_tokens"),
                time.monotonic() - started,
            ),
        )  # fmt: skip

    served.endpoint.in_parallel(ask, requests, requests_at_a_time, "generating")
