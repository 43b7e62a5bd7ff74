"""What several test files of feedback/ need."""

import socket

from accord.records import Comparison, Message, Response


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def comparison(number: int, texts: list[str]) -> Comparison:
    return Comparison(
        id=f"c-{number}",
        prompt=[Message(role="user", content=f"Why is water wet, asked for the {number}th time?")],
        responses=[Response(text=text, run="policy0", seed=i) for i, text in enumerate(texts)],
    )
