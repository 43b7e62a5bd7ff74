"""Guessing passwords is slowed down: after some failed log-ins a name, or an address, has to wait before the next.

Each failure beyond the free ones doubles the wait, from one second to five minutes; a log-in that succeeds forgets
the failures of its name and address, and so does an hour without any. Kept in memory: a restart forgets too.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .application import Application, Message, Receive, Send

FREE_FAILURES_OF_NAME = 5
FREE_FAILURES_OF_ADDRESS = 20  # a team may come from one address
LONGEST_WAIT_SECONDS = 300.0
SECONDS_TO_FORGET = 3600.0
MOST_ENTRIES = 10_000
MOST_BODY_BYTES = 10_000


@dataclass
class Failures:
    """How often a log-in failed, or is being tried, and when it may be tried again."""

    count: int = 0
    last: float = 0.0
    wait_until: float = 0.0


class Throttle:
    """Counts failures by key; `now` gives the time in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.failures: dict[str, Failures] = {}

    def seconds_to_wait(self, *keys: str) -> float:
        """How long until a log-in under these keys may be tried; 0 if it may be now."""
        return max(
            max(
                (self.failures[key].wait_until - self.now() for key in keys if key in self.failures),
                default=0,
            ),
            0,
        )

    def add(self, key: str, free: int) -> None:
        """Count a try as failed, until `forget` or `take_back` says otherwise; many at once then all count."""
        now = self.now()
        known = self.failures.pop(key, Failures())
        if now - known.last > SECONDS_TO_FORGET:
            known = Failures()
        known.count, known.last = known.count + 1, now
        if known.count >= free:
            known.wait_until = now + min(2.0 ** min(known.count - free, 30), LONGEST_WAIT_SECONDS)
        if len(self.failures) >= MOST_ENTRIES:
            self.failures.pop(next(iter(self.failures)))  # the one that failed longest ago
        self.failures[key] = known

    def take_back(self, key: str) -> None:
        """A try that was neither right nor wrong, such as a damaged request."""
        if key in self.failures:
            self.failures[key].count -= 1
            self.failures[key].wait_until = 0.0

    def forget(self, key: str) -> None:
        """A log-in succeeded."""
        self.failures.pop(key, None)


def throttle_log_ins(app: Application, throttle: Throttle | None = None) -> Application:
    """`app` whose log-in answers 429, with Retry-After, to whoever failed too often."""
    throttle = throttle or Throttle()

    async def throttled(scope: Message, receive: Receive, send: Send) -> None:
        is_log_in = scope["type"] == "http" and scope["method"] == "POST"
        if not (is_log_in and scope["path"].rstrip("/").endswith("/api/v1/token")):
            return await app(scope, receive, send)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                break
            if len(body) > MOST_BODY_BYTES:
                return await answer(send, 413, "this is no log-in")
        address = f"address {(scope.get('client') or ['unknown'])[0]}"
        name = f"name {await user_name(scope, body)}"
        if wait := math.ceil(throttle.seconds_to_wait(name, address)):
            reason = f"too many failed log-ins; try again in {wait} s"
            return await answer(send, 429, reason, (b"retry-after", str(wait).encode()))
        throttle.add(name, FREE_FAILURES_OF_NAME)

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 300:
                    throttle.forget(name)
                    throttle.forget(address)
                elif (
                    message["status"] == 401
                ):  # the name was counted before, so that many tries at once count
                    throttle.add(address, FREE_FAILURES_OF_ADDRESS)
                else:
                    throttle.take_back(name)
            await send(message)

        sent = False

        async def receive_body() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await app(scope, receive_body, send_and_count)

    return throttled


async def user_name(scope: Message, body: bytes) -> str:
    """The name in a log-in's form, read as the log-in itself will read it; empty if there is none."""
    from starlette.requests import Request

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(scope, receive).form()
    except Exception:  # a damaged form, which the log-in will refuse
        return ""
    return str(form.get("username", ""))


async def answer(send: Send, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
    """A short answer in the form of Argilla's own errors."""
    body = json.dumps({"detail": reason}).encode()
    kind = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": body})
