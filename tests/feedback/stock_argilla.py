"""A stock argilla-server to compare with: its own SQL code, handlers and OpenSearch engine, nothing of ours around it.

    .venv-argilla/bin/python -P tests/feedback/stock_argilla.py DATABASE PORT OPENSEARCH_URL

Runs inside argilla-server's environment, on a database that exists, whose records are indexed first. OPENSEARCH_URL
`none` stands for an engine that does nothing at no cost, for benchmarks. Redis is an in-memory stand-in.
"""

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import fakeredis
import redis


def main(database: Path, port: int, opensearch_url: str) -> None:
    has_engine = opensearch_url != "none"
    os.environ |= {
        "ARGILLA_HOME_PATH": str(database.parent),
        "ARGILLA_DATABASE_URL": f"sqlite+aiosqlite:///{database}?check_same_thread=False",
        "ARGILLA_DATABASE_SQLITE_TIMEOUT": "30",
        "ARGILLA_SEARCH_ENGINE": "opensearch" if has_engine else "none",
        "ARGILLA_ELASTICSEARCH": opensearch_url,
        "ARGILLA_AUTH_SECRET_KEY": secrets.token_urlsafe(32),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    connection = fakeredis.FakeRedis()
    redis.from_url = lambda *arguments, **options: connection  # type: ignore[assignment]

    import uvicorn
    from argilla_server import app
    from argilla_server.search_engine import SearchEngine

    if has_engine:
        asyncio.run(index_everything())
    else:
        SearchEngine.register(engine_name="none")(no_engine(SearchEngine))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


async def index_everything() -> None:
    """What `argilla_server search-engine reindex` does."""
    from argilla_server.cli.search_engine.reindex import Reindexer
    from argilla_server.database import AsyncSessionLocal, async_engine
    from argilla_server.search_engine import get_search_engine

    async with AsyncSessionLocal() as session:
        async for engine in get_search_engine():
            async for dataset in Reindexer.reindex_datasets(session, engine):
                async for _ in Reindexer.reindex_dataset_records(session, engine, dataset):
                    pass
    await async_engine.dispose()


def no_engine(base: Any) -> Any:
    """A search engine whose every hook returns at once."""

    async def nothing(*_: Any, **__: Any) -> bool:
        return True

    async def new_instance(cls: Any) -> Any:
        return cls()

    methods: dict[str, Any] = dict.fromkeys(base.__abstractmethods__, nothing)
    methods["new_instance"] = classmethod(new_instance)
    return type("NoEngine", (base,), methods)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
