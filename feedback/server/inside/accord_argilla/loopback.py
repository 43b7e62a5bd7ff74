"""Answers to programs on the same machine are not compressed: that takes longer than handing them over."""

from ipaddress import ip_address

from .application import Application, Message, Receive, Send


def uncompressed_on_loopback(app: Application) -> Application:
    """`app`, to which a client on the loopback interface seems to understand no compression."""

    async def without_compression(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") and ip_address(scope["client"][0]).is_loopback:
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": headers}
        await app(scope, receive, send)

    return without_compression
