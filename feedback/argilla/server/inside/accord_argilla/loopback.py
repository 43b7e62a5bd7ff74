"""Answers to programs on the same machine are not compressed: that takes longer than handing them over."""

from .application import Application, Message, Receive, Send


def uncompressed_on_loopback(app: Application) -> Application:
    """`app`, to which a client on the loopback interface seems to understand no compression."""

    async def without_compression(scope: Message, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client and (client[0].startswith("127.") or client[0] == "::1"):
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": headers}
        await app(scope, receive, send)

    return without_compression
