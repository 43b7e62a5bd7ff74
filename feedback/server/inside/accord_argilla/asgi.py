"""The application that is served: stock argilla-server, with accord's engine, jobs and headers around it."""

from argilla_server import app as argilla_app

from . import engine, jobs  # noqa: F401  (importing them registers the engine and replaces the jobs' `delay`)
from .security import add_security_headers

app = add_security_headers(argilla_app)
