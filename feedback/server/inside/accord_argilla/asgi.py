"""The application that is served: stock argilla-server, with accord's engine, jobs and headers around it."""

from argilla_server import app as argilla_app

# importing them registers the engine and replaces functions of argilla-server
from . import engine, events, jobs, shortcuts  # noqa: F401
from .loopback import uncompressed_on_loopback
from .security import add_security_headers

app = add_security_headers(uncompressed_on_loopback(argilla_app))
