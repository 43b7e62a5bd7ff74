"""Start the server: migrate the database, create the owner, mend record statuses, serve.

    python -P -m accord_argilla --home runs/argilla --port 6900

All in one process, because importing argilla_server (about four seconds) is most of the start. Secrets come
from `<home>/secrets.json`, so that neither the command line nor the environment shows them.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def main() -> None:
    """Parse the command line and serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="accord_argilla", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder of the database and the secrets")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen at")
    parser.add_argument("--public-url", help="the address that people use, at a reverse proxy")
    parser.add_argument("--proxy-address", help="the one IP address whose X-Forwarded-* headers count")
    arguments = parser.parse_args()
    home: Path = arguments.home
    owner = json.loads((home / "secrets.json").read_text())
    configure(home, arguments.port, owner["jwt_secret"], arguments.public_url)

    import uvicorn

    from .no_redis import replace_redis

    replace_redis()
    from .asgi import app

    migrate()
    build_text_index(home)
    asyncio.run(prepare(owner))
    uvicorn.run(
        app, host=arguments.host, port=arguments.port, access_log=False, server_header=False,
        proxy_headers=arguments.proxy_address is not None, forwarded_allow_ips=arguments.proxy_address or "",
        timeout_graceful_shutdown=5,
    )  # fmt: skip


def configure(home: Path, port: int, jwt_secret: str, public_url: str | None) -> None:
    """Set argilla-server's settings, which it reads from the environment when it is first imported."""
    scratch = (
        home / "tmp"
    )  # at every start argilla-server leaves a copy of its web page in the temporary folder
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    origins = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    public = urlsplit(public_url or "")
    if public_url is not None:
        origins.append(f"{public.scheme}://{public.netloc}")
    os.environ |= {
        "TMPDIR": str(scratch),
        "ARGILLA_HOME_PATH": str(home),
        "ARGILLA_DATABASE_URL": f"sqlite+aiosqlite:///{home / 'argilla.db'}?check_same_thread=False",
        "ARGILLA_DATABASE_SQLITE_TIMEOUT": "30",
        "ARGILLA_SEARCH_ENGINE": "sql",
        "ARGILLA_AUTH_SECRET_KEY": jwt_secret,
        "ARGILLA_CORS_ORIGINS": json.dumps(origins),
        "ARGILLA_BASE_URL": public.path.rstrip("/") + "/",
        "ARGILLA_DOCS_ENABLED": "false",  # Swagger's page loads scripts from a foreign host
        "ARGILLA_SHOW_HUGGINGFACE_SPACE_PERSISTENT_STORAGE_WARNING": "false",
        "ARGILLA_MAX_MESSAGE_LENGTH": "1000000",  # characters of one chat message; the stock limit is 20,000
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }


def migrate() -> None:
    """Create the database's tables or bring them to this server's version."""
    import alembic.config
    from argilla_server.database import ALEMBIC_CONFIG_FILE

    alembic.config.main(argv=["-c", ALEMBIC_CONFIG_FILE, "upgrade", "head"])
    for (
        logger
    ) in logging.root.manager.loggerDict.values():  # alembic's ini file silences those made before it
        if isinstance(logger, logging.Logger):
            logger.disabled = False


def build_text_index(home: Path) -> None:
    """Index the records' texts if this database has no index yet, or an old one."""
    import sqlite3
    from contextlib import closing

    from .text_index import build

    with closing(sqlite3.connect(home / "argilla.db", timeout=30)) as database:
        if build(database):
            logging.getLogger("argilla").info("the full-text index was built")


async def prepare(owner: dict[str, Any]) -> None:
    """Make sure that the one owner exists, with the password and key of the secrets file, and mend statuses."""
    from argilla_server.contexts import accounts
    from argilla_server.database import AsyncSessionLocal
    from argilla_server.enums import UserRole

    from .connections import async_engine
    from .jobs import mend_record_statuses

    async with AsyncSessionLocal() as session:
        user = await accounts.get_user_by_username(session, owner["username"])
        if user is None:
            user = await accounts.create_user(
                session,
                {
                    "username": owner["username"],
                    "first_name": owner["username"],
                    "last_name": None,
                    "role": UserRole.owner,
                    "password": owner["password"],
                },
            )
        if user.api_key != owner["api_key"]:
            await user.update(session, api_key=owner["api_key"])
    await mend_record_statuses()
    await async_engine.dispose()  # its connections belong to this event loop; the server opens its own


if __name__ == "__main__":
    main()
