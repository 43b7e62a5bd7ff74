"""A conversation with a model, an answer at a time, as it is written.

talk = Talk(resolve("run:ppo-1", runs))
for piece in talk.answer("Name a prime.", temperature=0.7, max_response_tokens=200): ...
talk.messages       # what was said, as any file of demonstrations has it
"""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig, TextIteratorStreamer

from accord.chat.tokens import encode_prompt
from accord.errors import UsageError
from accord.models.loading import load_policy, load_tokenizer
from accord.models.references import Model
from accord.records import Message

SECONDS_WITHOUT_A_TOKEN = 600
"""After which nothing more is expected of a model."""


class Talk:
    """One conversation; transformers computes the answers."""

    def __init__(self, model: Model, system: str = "", seed: int = 0):
        """Load the model, on the GPU if there is one.

        Args:
            model: who answers.
            system: what the system message says, if anything.
            seed: of all answers.

        Raises:
            UsageError: the model cannot be loaded, or has no chat template.
        """
        self.tokenizer = load_tokenizer(model)
        self._model: Any = load_policy(model).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._longest = int(self._model.config.get_text_config().max_position_embeddings)
        self._system, self._seed = system, seed
        self.messages: list[Message] = []
        self.begin()

    def begin(self, system: str | None = None) -> None:
        """Forget what was said; `system` replaces the system message."""
        if system is not None:
            self._system = system
        self.messages = [Message(role="system", content=self._system)] if self._system else []

    def answer(
        self, question: str, temperature: float = 0.7, max_response_tokens: int = 512
    ) -> Iterator[str]:
        """The answer, piece by piece; an answer that is not read to its end is cut there and kept.

        Args:
            question: what the user says.
            temperature: 0 takes the likeliest token each time.
            max_response_tokens: where the answer is cut.

        Raises:
            UsageError: the conversation has become longer than the model reads.
            DataError: the chat template refuses it.
        """
        messages = [*self.messages, Message(role="user", content=question)]
        ids = encode_prompt(self.tokenizer, messages)
        room = self._longest - len(ids)
        if room <= 0:
            raise UsageError(
                f"the conversation has {len(ids)} tokens, and the model reads {self._longest}; begin a new one"
            )
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, timeout=SECONDS_WITHOUT_A_TOKEN, skip_special_tokens=True
        )
        stop = threading.Event()
        turn = sum(message.role == "assistant" for message in self.messages)
        failed: list[BaseException] = []
        writer = threading.Thread(
            target=self._write,
            args=(
                ids,
                streamer,
                stop,
                failed,
                self._seed + turn,
                temperature,
                min(room, max_response_tokens),
            ),
            daemon=True,
        )
        writer.start()
        said: list[str] = []
        try:
            for piece in streamer:
                said.append(piece)
                yield piece
        finally:
            stop.set()
            writer.join()
            if said and "".join(said).strip():
                self.messages = [*messages, Message(role="assistant", content="".join(said))]
        if failed:
            raise failed[0]

    def _write(
        self, ids: list[int], streamer: Any, stop: threading.Event, failed: list[BaseException], seed: int,
        temperature: float, max_response_tokens: int,
    ) -> None:  # fmt: skip
        eos = self.tokenizer.eos_token_id
        torch.manual_seed(seed)
        try:
            with torch.inference_mode():
                self._model.generate(
                    input_ids=torch.tensor([ids], device=self._model.device),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self._model.device),
                    generation_config=GenerationConfig(
                        do_sample=temperature > 0, temperature=temperature or 1.0, top_k=0,
                        max_new_tokens=max_response_tokens, eos_token_id=eos, pad_token_id=eos,
                    ),
                    streamer=streamer,
                    stopping_criteria=[lambda *_: torch.tensor([stop.is_set()])],
                )  # fmt: skip
        except BaseException as error:  # it is raised where the answer is read
            failed.append(error)
            streamer.end()
