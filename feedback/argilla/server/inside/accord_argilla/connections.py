"""As many database connections as requests need.

A search holds its request's connection while it asks for one of its own, and so do other requests upstream. With
SQLAlchemy's bound of 15 connections, as many requests at once wait for one another until they time out.
"""

from argilla_server.database import AsyncSessionLocal
from argilla_server.settings import settings
from sqlalchemy.ext.asyncio import create_async_engine

CONNECTIONS_KEPT = 20

async_engine = create_async_engine(
    settings.database_url, **settings.database_engine_args, pool_size=CONNECTIONS_KEPT, max_overflow=-1
)
AsyncSessionLocal.configure(bind=async_engine)
