"""Who can reach the embedded server: this machine alone, a network, or the clients of a reverse proxy."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from accord.errors import AccordError


@dataclass(frozen=True)
class Exposure:
    """Where the server listens, and what it knows of a reverse proxy before it.

    Attributes:
        host: the IP address to listen at; 0.0.0.0 for all of this machine's.
        public_url: the address that people use, if a reverse proxy stands before the server; it may have a path.
        proxy_address: the IP address of that proxy, the only one whose X-Forwarded-* headers are believed.
    """

    host: str = "127.0.0.1"
    public_url: str | None = None
    proxy_address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        for address in (self.host, self.proxy_address):
            try:
                ip_address(address)
            except ValueError:
                raise AccordError(
                    f"'{address}' is no IP address; give one such as 0.0.0.0 or 10.0.0.5"
                ) from None
        if self.public_url is not None:
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
                raise AccordError(
                    f"'{self.public_url}' is no URL of a page; give one such as https://argilla.example.org"
                )

    @property
    def path(self) -> str:
        """The path of the public URL, without a slash at its end: empty, or `/argilla`."""
        return urlsplit(self.public_url or "").path.rstrip("/")

    @property
    def is_readable_on_the_way(self) -> bool:
        """Whether passwords cross a network without TLS."""
        if self.public_url is not None:
            return urlsplit(self.public_url).scheme != "https"
        return not ip_address(self.host).is_loopback

    def local_url(self, port: int) -> str:
        """The URL at which a program on this machine reaches the server."""
        address = ip_address(self.host)
        host = ("127.0.0.1" if address.version == 4 else "::1") if address.is_unspecified else self.host
        return f"http://{host if address.version == 4 else f'[{host}]'}:{port}{self.path}"

    def arguments(self) -> list[str]:
        """The options of `python -m accord_argilla`."""
        options = ["--host", self.host]
        if self.public_url is not None:
            options += ["--public-url", self.public_url, "--proxy-address", self.proxy_address]
        return options


LOOPBACK = Exposure()
