"""Webhook events are made only if a webhook listens for them.

For every record that is added, changed, answered or completed, argilla-server loads all that an event says (six
queries), and then looks whether anybody wants it. Here it looks first, once in a session, which is once in a request.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from argilla_server.bulk import records_bulk
from argilla_server.contexts import datasets, distribution, records, webhooks
from argilla_server.webhooks.v1 import datasets as dataset_events
from argilla_server.webhooks.v1 import records as record_events
from argilla_server.webhooks.v1 import responses as response_events
from sqlalchemy.ext.asyncio import AsyncSession

Listener = Callable[..., Awaitable[Any]]


class UnheardEvent:
    """Stands for an event that no webhook listens for."""

    async def notify(self, session: AsyncSession) -> list[Any]:
        """Tells nobody."""
        return []


async def is_heard(session: AsyncSession, event: str) -> bool:
    """Whether an enabled webhook listens for this kind of event."""
    if "accord_events" not in session.info:
        enabled = await webhooks.list_enabled_webhooks(session)
        session.info["accord_events"] = {name for webhook in enabled for name in webhook.events}
    return event in session.info["accord_events"]


def only_if_heard(build: Listener) -> tuple[Listener, Listener]:
    """The stock function that builds an event, and one that builds it and notifies, less what nobody hears."""

    async def build_event(session: AsyncSession, event: str, subject: Any) -> Any:
        return await build(session, event, subject) if await is_heard(session, event) else UnheardEvent()

    async def notify_event(session: AsyncSession, event: str, subject: Any) -> Any:
        return await (await build_event(session, event, subject)).notify(session)

    return build_event, notify_event


build_dataset_event, notify_dataset_event = only_if_heard(dataset_events.build_dataset_event)
build_record_event, notify_record_event = only_if_heard(record_events.build_record_event)
build_response_event, notify_response_event = only_if_heard(response_events.build_response_event)

# each module has imported the functions under names of its own
records_bulk.notify_record_event_v1 = notify_record_event
distribution.notify_record_event_v1 = notify_record_event
records.build_record_event_v1 = build_record_event
records.notify_record_event_v1 = notify_record_event
datasets.build_dataset_event_v1 = build_dataset_event
datasets.notify_dataset_event_v1 = notify_dataset_event
datasets.build_record_event_v1 = build_record_event
datasets.notify_record_event_v1 = notify_record_event
datasets.build_response_event_v1 = build_response_event
datasets.notify_response_event_v1 = notify_response_event
