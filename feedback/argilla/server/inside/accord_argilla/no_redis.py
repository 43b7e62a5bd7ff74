"""Take Redis's place before argilla_server connects to it."""

import fakeredis
import redis


def replace_redis() -> None:
    """Make every later `redis.from_url` return one in-memory stand-in; call it before importing argilla_server.

    argilla_server connects to Redis while it is imported, and at its start it waits a minute for an answer.
    """
    connection = fakeredis.FakeRedis()
    redis.from_url = lambda *arguments, **options: connection
