"""What a request may be before anything of it is read: how large, and in which letters its path is written.

Without, argilla-server reads a body to its end before it asks who sends it. Small bodies pass at once; who sends a
larger one is asked for by a request of the same credentials first, and it is never larger than records of a data set
take. Bodies without a stated length are counted as they come.
"""

import re

from .application import Application, Message, Receive, Send
from .throttle import answer

SMALL_BYTES = 64 * 2**10
"""What anybody may send: a log-in, a search, a short response."""
LARGE_BYTES = 2**20
"""What somebody who logged in may send: a response with its texts."""
RECORDS_BYTES = 64 * 2**20
"""A batch of records with answers of models, to which only accord itself and admins have a reason."""
RECORDS = re.compile(r"/api/v1/datasets/[^/]+/records(/bulk)?/?$")


class TooLargeError(Exception):
    """A body turned out to be larger than it may be."""


def limit_requests(app: Application) -> Application:
    """`app` that answers 404 to paths with control characters, and 413 to bodies that are too large, unread."""

    async def limited(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if any(ord(character) < 32 for character in scope["path"]):
            return await answer(send, 404, "no page has such a name")
        length = _stated_length(scope)
        most = RECORDS_BYTES if RECORDS.search(scope["path"]) else LARGE_BYTES
        if length is not None and length > most:
            return await answer(send, 413, f"a body may have {most:,} bytes here")
        is_small = scope["method"] in ("GET", "HEAD", "OPTIONS") or (
            length is not None and length <= SMALL_BYTES
        )
        if not is_small and not await _is_somebody(app, scope):
            most = SMALL_BYTES
            if length is not None:
                return await answer(send, 413, f"a body may have {most:,} bytes before a log-in")
        read = 0
        refused = False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise TooLargeError
            return message

        async def watched(message: Message) -> None:
            """FastAPI makes an answer of its own of whatever goes wrong while it reads; ours takes its place."""
            nonlocal refused
            if read <= most:
                await send(message)
            elif not refused:
                refused = True
                await answer(send, 413, f"a body may have {most:,} bytes here")

        try:
            await app(scope, counted, watched)
        except TooLargeError:
            await watched({})

    return limited


def _stated_length(scope: Message) -> int | None:
    """Of the body; None where it comes in chunks, 0 where none is announced."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    stated = headers.get(b"content-length", b"0")
    return int(stated) if stated.isdigit() else 0


async def _is_somebody(app: Application, scope: Message) -> bool:
    """Whether the request's credentials are somebody's, asked of the application itself."""
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name in (b"authorization", b"x-argilla-api-key", b"host")
    ]
    root = scope["path"].split("/api/", 1)[0]
    asked = {**scope, "method": "GET", "path": f"{root}/api/v1/me", "raw_path": f"{root}/api/v1/me".encode(),
             "query_string": b"", "headers": kept, "state": dict(scope.get("state") or {})}  # fmt: skip
    status = 401

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def look(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = int(message["status"])

    await app(asked, nothing, look)
    return status == 200
