"""The application that is served: argilla-server with accord's engine, jobs, headers, limits and throttle."""

from argilla_server import app as argilla_app

# importing them registers the engine and replaces functions of argilla-server
from . import engine, events, jobs, shortcuts  # noqa: F401
from .limits import limit_requests
from .loopback import uncompressed_on_loopback
from .security import add_security_headers
from .throttle import throttle_log_ins

app = add_security_headers(limit_requests(throttle_log_ins(uncompressed_on_loopback(argilla_app))))
