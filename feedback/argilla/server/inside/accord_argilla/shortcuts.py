"""What argilla-server does over and over for each record, done once here; see `events` too."""

from typing import Any
from uuid import UUID

from argilla_server.api.schemas.v1.records import RecordCreate
from argilla_server.models import Dataset, Record, User, database
from argilla_server.validators.records import RecordCreateValidator
from pydantic import TypeAdapter
from sqlalchemy.orm.attributes import set_committed_value

_adapters: dict[int, TypeAdapter[Any]] = {}


def type_adapter(kind: Any) -> TypeAdapter[Any]:
    """The one `TypeAdapter` of `kind`, which must be a type that a module holds for good.

    Upstream makes a new one, in about two milliseconds, each time it looks at a metadata value or an answer.
    """
    if id(kind) not in _adapters:
        _adapters[id(kind)] = TypeAdapter(kind)
    return _adapters[id(kind)]


async def validate(cls: type[RecordCreateValidator], record_create: RecordCreate, dataset: Dataset) -> None:
    """`RecordCreateValidator.validate`, with a record to look at that the dataset does not get to know.

    Upstream's joins the dataset's records, and at every flush SQLAlchemy goes through all that joined before.
    """
    record = Record(fields=record_create.fields)
    set_committed_value(record, "dataset", dataset)
    cls._validate_fields(record_create.fields, dataset)
    cls._validate_metadata(record_create.metadata, dataset)
    cls._validate_suggestions(record_create.suggestions, dataset, record=record)
    cls._validate_vectors(record_create.vectors, dataset)
    await cls._validate_responses(record_create.responses, dataset, record=record)


async def is_member(user: User, workspace_id: UUID) -> bool:
    """`User.is_member`, asked once in a session, which is once in a request.

    Upstream asks the database for every metadata value of every record that it shows to an annotator.
    """
    known = user.current_async_session.info.setdefault("accord_members", {})
    if (user.id, workspace_id) not in known:
        known[user.id, workspace_id] = await stock_is_member(user, workspace_id)
    return known[user.id, workspace_id]


stock_is_member = User.is_member
User.is_member = is_member
database.TypeAdapter = type_adapter
RecordCreateValidator.validate = classmethod(validate)
