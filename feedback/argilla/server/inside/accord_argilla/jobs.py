"""Argilla's background jobs in the server's own process, without Redis and without a worker.

argilla-server hands jobs to RQ with `job.delay(...)`. Here `delay` starts an asyncio task instead; an in-memory
fakeredis stands where the server pings Redis at its start. A queued job ends with the process, which loses
nothing: whatever a lost status job would have done, `mend_record_statuses` does at the next start.
"""

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from argilla_server.contexts import distribution
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import RecordStatus, ResponseStatus
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.jobs import dataset_jobs, hub_jobs, webhook_jobs
from argilla_server.models import Dataset, Record, Response, Webhook
from argilla_server.search_engine import SearchEngine
from argilla_server.webhooks.v1.commons import notify_event
from sqlalchemy import case, func, select

log = logging.getLogger("argilla.jobs")

SECONDS_BEFORE_TRIES = (0, 10, 60, 180)  # as RQ is told to retry webhook deliveries

_running: set[asyncio.Task[None]] = set()


@dataclasses.dataclass(frozen=True)
class StartedJob:
    """What argilla-server's handlers read of an RQ job."""

    id: str

    def get_status(self) -> str:
        """Always "started": the task begins as soon as the request that made it is answered."""
        return "started"


def in_process(job: Callable[..., Awaitable[None]]) -> Callable[..., StartedJob]:
    """A `delay` that runs the coroutine function `job` in the server's event loop, and tries again on errors."""

    async def run(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        for number, seconds in enumerate(SECONDS_BEFORE_TRIES, start=1):
            await asyncio.sleep(seconds)
            try:
                return await job(*arguments, **options)
            except Exception:
                log.exception("job %s failed (try %d of %d)", job.__name__, number, len(SECONDS_BEFORE_TRIES))

    def delay(*arguments: Any, **options: Any) -> StartedJob:
        task = asyncio.get_running_loop().create_task(run(arguments, options))
        _running.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(_running.discard)
        return StartedJob(id=str(uuid.uuid4()))

    return delay


async def deliver_webhook(
    webhook_id: uuid.UUID, event: str, timestamp: datetime, data: dict[str, Any]
) -> None:
    """Argilla's `notify_event_job` with its blocking HTTP call in a thread, off the server's event loop."""
    async with AsyncSessionLocal() as session:
        webhook = await Webhook.get_or_raise(session, webhook_id)
    response = await asyncio.to_thread(notify_event, webhook, event, timestamp, data)
    response.raise_for_status()


def refuse_hub_job(*_: Any, **__: Any) -> StartedJob:
    """Answer a request to import from or export to the Hub: this server runs offline."""
    raise UnprocessableEntityError("accord's embedded Argilla works offline and has no Hub import or export")


dataset_jobs.update_dataset_records_status_job.delay = in_process(
    dataset_jobs.update_dataset_records_status_job
)
webhook_jobs.notify_event_job.delay = in_process(deliver_webhook)
hub_jobs.import_dataset_from_hub_job.delay = refuse_hub_job
hub_jobs.export_dataset_to_hub_job.delay = refuse_hub_job


async def mend_record_statuses() -> int:
    """Set every record's status to what its submitted answers say, and return how many were wrong.

    A record's status is written after the answer that completes it, in another transaction, and by a job after
    `min_submitted` changes; a server killed in between leaves it wrong.
    """
    submitted = (
        select(func.count())
        .select_from(Response)
        .where(Response.record_id == Record.id, Response.status == ResponseStatus.submitted)
        .correlate(Record)
        .scalar_subquery()
    )
    needed = func.json_extract(Dataset.distribution, "$.min_submitted")
    right = case((submitted >= needed, RecordStatus.completed.value), else_=RecordStatus.pending.value)
    async with AsyncSessionLocal() as session:
        wrong = await session.scalars(
            select(Record.id).join(Dataset, Dataset.id == Record.dataset_id).where(Record.status != right)
        )
        record_ids = wrong.all()
    async with SearchEngine.get_by_name("sql") as search_engine:
        for record_id in record_ids:
            await distribution.update_record_status(search_engine, record_id)
    if record_ids:
        log.warning("%d record statuses were mended", len(record_ids))
    return len(record_ids)
