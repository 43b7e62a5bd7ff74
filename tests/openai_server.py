"""A small server that plays the OpenAI protocol."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str, dict[str, Any]], Any]


@dataclass
class FakeServer:
    """Plays the OpenAI protocol; `reply(question, body)` is a completion, or (status, JSON), or (status, text)."""

    url: str = ""
    reply: Reply = lambda question, body: completion("A")
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def questions(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


def completion(
    text: str, probabilities: dict[str, float] | None = None, usage: tuple[int, int] | None = None,
    finish: str = "stop",
) -> dict[str, Any]:  # fmt: skip
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if probabilities is not None:
        top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
    used = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return {"choices": [choice], **used}


@contextmanager
def serving() -> Iterator[FakeServer]:
    fake = FakeServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                fake.bodies.append(body)
                fake.keys.append(self.headers.get("Authorization"))
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
            found = fake.reply(body["messages"][-1]["content"], body)
            status, content = found if isinstance(found, tuple) else (200, found)
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            with lock:
                fake.at_once -= 1
            try:
                self.send_response(404 if self.path != "/v1/chat/completions" else status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # nobody waits any more

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    fake.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield fake
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
