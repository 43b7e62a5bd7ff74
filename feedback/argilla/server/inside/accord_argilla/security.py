"""Response headers that keep what models wrote from running in an annotator's page.

Argilla shows a text field that looks like HTML in a frame of its own origin, where a script could read the
annotator's token from local storage. The content security policy allows the page's own files and, by hash, its
own inline scripts; scripts, event handlers, remote images and forms that came with a record do nothing.
"""

import base64
import hashlib
import re
from pathlib import Path

import argilla_server
from argilla_server.settings import settings

from .application import Application, Message, Receive, Send


def content_security_policy() -> str:
    """The policy, with the hashes of the inline scripts of the installed web page."""
    scripts = " ".join(["'self'", *sorted(inline_script_hashes())])
    return "; ".join(
        [
            "default-src 'self'",
            f"script-src {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "frame-src 'self'",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


def inline_script_hashes() -> set[str]:
    """CSP source expressions of every inline script in the web page's HTML files, as the server will send them."""
    folder = Path(argilla_server.__file__).parent / "static"
    hashes = set()
    for path in folder.rglob("*.html"):
        html = path.read_text(encoding="utf-8").replace("@@baseUrl@@", settings.base_url.rstrip("/"))
        for script in re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", html, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            hashes.add(f"'sha256-{digest}'")
    return hashes


def add_security_headers(app: Application) -> Application:
    """`app` with the security headers on every HTTP response."""
    headers = [
        (b"content-security-policy", content_security_policy().encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"x-frame-options", b"DENY"),
    ]

    async def with_headers(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        await app(scope, receive, send_with_headers)

    return with_headers
