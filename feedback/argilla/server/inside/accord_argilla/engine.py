"""A search engine for argilla-server that answers from Argilla's own SQL tables, registered as "sql".

Everything that the stock engines index is already in the database when they are told of it (their hooks run
after the commit), so here each hook does nothing and each question is a query. There is no second store, and
nothing that could differ from the data: the full-text index is kept right by the database itself (`text_index`).
It needs SQLite 3.38 or later for its JSON functions.
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import sqlalchemy as sa
from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import MetadataPropertyType, ResponseStatusFilter, SimilarityOrder, SortOrder
from argilla_server.models import (
    Dataset,
    MetadataProperty,
    Question,
    Record,
    Response,
    Suggestion,
    User,
    Vector,
    VectorSettings,
)
from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    FilterScope,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataFilterScope,
    MetadataMetrics,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    SuggestionFilterScope,
    TermsFilter,
    TermsMetrics,
    TextQuery,
)
from sqlalchemy import and_, cast, event, exists, false, func, not_, or_, select, true

from . import text_index, text_query
from .connections import async_engine

SqlExpression: TypeAlias = sa.ColumnElement[Any]

# FTS5's expression for the ten nearest words of the index, as the stock engine asks for; `=x` is never a word
FUZZY_EXPRESSION = """(
SELECT coalesce(group_concat('"' || term || '"', ' OR '), '"=x"') FROM (
  SELECT term FROM accord_vocabulary WHERE accord_edits(term, :word) <= :edits
  ORDER BY accord_edits(term, :word), term LIMIT 10))"""


@event.listens_for(async_engine.sync_engine, "connect")
def _prepare_connection(connection: Any, _: Any) -> None:
    """Readers and the one writer do not block each other (WAL), and SQL can call the functions of ours."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()
    connection.create_function("accord_shuffle", 2, _shuffle_key, deterministic=True)
    text_index.add_functions(connection)


def _shuffle_key(seed: str, record_id: str) -> int:
    """A number to sort by: record ids are random already, and each seed multiplies them by a number of its own."""
    return int(record_id, 16) * _multiplier(seed) >> 64 & (2**63 - 1)


@lru_cache(maxsize=1024)
def _multiplier(seed: str) -> int:
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=16).digest(), "big") | 1


@SearchEngine.register(engine_name="sql")
class SqlSearchEngine(SearchEngine):
    """Searches, sorts and counts with SQL; keeps no state."""

    @classmethod
    async def new_instance(cls) -> "SqlSearchEngine":
        """A new engine; it holds no connection of its own."""
        return cls()

    async def close(self) -> None:
        """Nothing to close."""

    async def ping(self) -> bool:
        """Whether the database answers."""
        async with AsyncSessionLocal() as session:
            return await session.scalar(select(1)) == 1

    async def info(self) -> dict[str, Any]:
        """What the server's status page shows of the engine."""
        async with AsyncSessionLocal() as session:
            version = await session.scalar(select(func.sqlite_version()))
        return {"name": "accord-sql", "version": {"number": version, "distribution": "sqlite"}}

    # The hooks: the data that they carry is in the tables already.

    async def create_index(self, dataset: Dataset) -> None:  # noqa: D102
        pass

    async def delete_index(self, dataset: Dataset) -> None:  # noqa: D102
        pass

    async def configure_metadata_property(  # noqa: D102
        self, dataset: Dataset, metadata_property: MetadataProperty
    ) -> None:
        pass

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:  # noqa: D102
        pass

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:  # noqa: D102
        pass

    async def partial_record_update(self, record: Record, **update: Any) -> None:  # noqa: D102
        pass

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:  # noqa: D102
        pass

    async def update_record_response(self, response: Response) -> None:  # noqa: D102
        pass

    async def delete_record_response(self, response: Response) -> None:  # noqa: D102
        pass

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:  # noqa: D102
        pass

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:  # noqa: D102
        pass

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """How many records of the dataset have which status, and their total."""
        if dataset.is_draft:
            return {}
        async with AsyncSessionLocal() as session:
            rows = await session.execute(
                select(Record.status, func.count())
                .where(Record.dataset_id == dataset.id)
                .group_by(Record.status)
            )
            counts = {status.value: count for status, count in rows}
        return {"total": sum(counts.values()), **counts}

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """How many answers of this user have which status, and their total.

        The stock engines count other annotators' answers to the same records too; the page calls it "my progress".
        """
        if dataset.is_draft:
            return {}
        async with AsyncSessionLocal() as session:
            rows = await session.execute(
                select(Response.status, func.count())
                .join(Record, Record.id == Response.record_id)
                .where(Record.dataset_id == dataset.id, Response.user_id == user.id)
                .group_by(Response.status)
            )
            counts = {status.value: count for status, count in rows}
        return {"total": sum(counts.values()), **counts}

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | None = None,
    ) -> SearchResponses:
        """One page of the records that match, and how many match in all.

        Without `sort`, a user sees the records in a random order that is that user's own and always the same;
        without a user either, in the order in which they came.
        """
        where = [Record.dataset_id == dataset.id, *_conditions(dataset, query, filter)]
        order = []
        for wanted in sort or []:
            ascending = wanted.order == SortOrder.asc
            expression = _sort_expression(wanted.scope, ascending)
            order.append((expression.asc() if ascending else expression.desc()).nulls_last())
        if not order and user_id is not None:
            order.append(func.accord_shuffle(str(user_id), cast(Record.id, sa.String)))
        order += [Record.inserted_at.asc(), Record.id.asc()]
        page = (
            select(Record.id, func.count().over()).where(*where).order_by(*order).offset(offset).limit(limit)
        )
        async with AsyncSessionLocal() as session:
            rows = (await session.execute(page)).all()
            if rows:
                total = rows[0][1]
            else:  # beyond the last page no row says how many there are
                total = await session.scalar(select(func.count()).select_from(Record).where(*where))
        items = [SearchResponseItem(record_id=record_id, score=1.0) for record_id, _ in rows]
        return SearchResponses(items=items, total=total)

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """The counts of a terms property's values, or the smallest and largest value of a numeric one."""
        path = _json_path(metadata_property.name)
        where = Record.dataset_id == metadata_property.dataset_id
        async with AsyncSessionLocal() as session:
            if metadata_property.type == MetadataPropertyType.terms:
                item = func.json_each(Record.metadata_, path).table_valued("value").alias()
                rows = await session.execute(
                    select(cast(item.c.value, sa.String), func.count())
                    .select_from(Record)
                    .join(item, true())
                    .where(where, item.c.value.is_not(None))
                    .group_by(item.c.value)
                    .order_by(func.count().desc(), item.c.value.asc())
                )
                counts = [TermsMetrics.TermCount(term=term, count=count) for term, count in rows]
                return TermsMetrics(total=sum(each.count for each in counts), values=counts)
            value = func.json_extract(Record.metadata_, path)
            rows = await session.execute(select(func.min(value), func.max(value)).where(where))
            lowest, highest = rows.one()
        if metadata_property.type == MetadataPropertyType.integer:
            return IntegerMetadataMetrics(min=lowest, max=highest)
        return FloatMetadataMetrics(min=lowest, max=highest)

    async def similarity_search(
        self,
        dataset: Dataset,
        vector_settings: VectorSettings,
        value: list[float] | None = None,
        record: Record | None = None,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        max_results: int = 100,
        order: SimilarityOrder = SimilarityOrder.most_similar,
        threshold: float | None = None,
    ) -> SearchResponses:
        """The records whose vectors point most (or least) like the given vector or record's, by exact cosine.

        Scores are (1 + cosine) / 2, as the stock engines give them.
        """
        if bool(value) == bool(record):
            raise ValueError("Must provide either vector value or record to compute the similarity search")
        vector = value if record is None else record.vector_value_by_vector_settings(vector_settings)
        if not vector:
            raise ValueError("Cannot find a vector value to apply with provided info")
        where = [
            Record.dataset_id == dataset.id,
            Vector.vector_settings_id == vector_settings.id,
            *_conditions(dataset, query, filter),
        ]
        if record is not None:
            where.append(Record.id != record.id)
        async with AsyncSessionLocal() as session:
            found = await session.execute(
                select(Record.id, Vector.value).join(Vector, Vector.record_id == Record.id).where(*where)
            )
            rows = found.all()
        if not rows:
            return SearchResponses(items=[], total=0)
        vectors = np.asarray([row.value for row in rows], dtype=np.float32)
        wanted = np.asarray(vector, dtype=np.float32)
        if order == SimilarityOrder.least_similar:
            wanted = -wanted
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted)
        scores = (1 + vectors @ wanted / np.maximum(lengths, 1e-12)) / 2
        best = np.argsort(-scores, kind="stable")[:max_results]
        items = [
            SearchResponseItem(record_id=rows[i].id, score=float(scores[i]))
            for i in best
            if threshold is None or scores[i] >= threshold
        ]
        return SearchResponses(items=items, total=len(items))


def _conditions(
    dataset: Dataset, query: TextQuery | str | None, filter: Filter | None
) -> list[SqlExpression]:
    """The text query and the filter as SQL conditions on `Record`."""
    conditions = []
    if query is not None:
        text = TextQuery(q=query) if isinstance(query, str) else query
        searched = [field for field in dataset.fields if text.field in (None, field.name)]
        tree = text_query.parse(text.q, has_keywords=any(field.is_chat for field in searched))
        conditions.append(_text_condition(tree, text.field))
    if filter is not None:
        conditions.append(_filter_condition(filter))
    return conditions


def _text_condition(tree: text_query.Query | None, field: str | None) -> SqlExpression:
    """Whether a record matches a text query, in one field or in any."""
    match tree:
        case None:
            return false()
        case text_query.Everything():
            return true()
        case text_query.Not(part):
            return not_(_text_condition(part, field))
        case text_query.Both(left, right):
            return and_(_text_condition(left, field), _text_condition(right, field))
        case text_query.Either(left, right):
            return or_(_text_condition(left, field), _text_condition(right, field))
        case _:
            # the plus sign keeps SQLite from looking each of them up in the large table of records
            return sa.literal_column("+records.id").in_(_records_with(tree, field))


def _records_with(leaf: text_query.Leaf, field: str | None) -> sa.Select[Any]:
    """The ids of the records with a field that one part of a text query matches, from the full-text index."""
    texts = sa.table("accord_texts", sa.column("rowid"), sa.column("words"))
    fields = sa.table("accord_fields", sa.column("id"), sa.column("record"), sa.column("field"))
    expression: Any
    if isinstance(leaf, text_query.Fuzzy):
        expression = sa.text(FUZZY_EXPRESSION).bindparams(
            sa.bindparam("word", leaf.text, unique=True), sa.bindparam("edits", leaf.edits, unique=True)
        )
    else:
        expression = text_query.full_text_expression(leaf)
    found = (
        select(fields.c.record)
        .select_from(texts)
        .join(fields, fields.c.id == texts.c.rowid)
        .where(sa.literal_column("accord_texts").op("MATCH")(expression))
    )
    if isinstance(leaf, text_query.Phrase) and leaf.slop:
        found = found.where(func.accord_is_near(texts.c.words, leaf.text, leaf.slop) == 1)
    return found.where(fields.c.field == field) if field is not None else found


def _filter_condition(filter: Filter) -> SqlExpression:
    if isinstance(filter, AndFilter):
        return and_(true(), *[_filter_condition(part) for part in filter.filters])
    scope = filter.scope
    if isinstance(scope, ResponseFilterScope):
        return _response_condition(filter, scope)
    if isinstance(scope, MetadataFilterScope):
        return _json_condition(Record.metadata_, _json_path(scope.metadata_property), filter)
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion_condition(filter, scope)
    if isinstance(scope, RecordFilterScope):
        return _record_condition(filter, scope)
    raise ValueError(f"Cannot process filter {filter}")


def _record_condition(filter: TermsFilter | RangeFilter, scope: RecordFilterScope) -> SqlExpression:
    name = str(scope.property)
    column = getattr(Record, name)
    if isinstance(filter, TermsFilter):
        if name == "id":
            return func.lower(cast(Record.id, sa.String)).in_(
                [value.replace("-", "").lower() for value in filter.values]
            )
        return cast(column, sa.String).in_([str(value) for value in filter.values])
    if name in ("inserted_at", "updated_at"):
        return _between(column, _as_utc(filter.ge), _as_utc(filter.le))
    return _between(column, filter.ge, filter.le)


def _response_condition(filter: TermsFilter | RangeFilter, scope: ResponseFilterScope) -> SqlExpression:
    """A condition on the answers to a record: the asking user's own where the scope names one."""
    answer = select(1).select_from(Response).where(Response.record_id == Record.id).correlate(Record)
    if scope.user is not None:
        answer = answer.where(Response.user_id == scope.user.id)
    if scope.question:
        value = _json_condition(Response.values, _json_path(scope.question, "value"), filter)
        return exists(answer.where(value))
    if scope.property == "status" and isinstance(filter, TermsFilter):
        statuses = [str(value) for value in filter.values]
        wanted = [status for status in statuses if status != ResponseStatusFilter.pending]
        alternatives = []
        if wanted:
            alternatives.append(exists(answer.where(Response.status.in_(wanted))))
        if ResponseStatusFilter.pending in statuses:  # pending is no status of an answer: there is none yet
            alternatives.append(not_(exists(answer)))
        return or_(*alternatives)
    raise ValueError(f"Cannot process filter scope {scope}")


def _suggestion_condition(filter: TermsFilter | RangeFilter, scope: SuggestionFilterScope) -> SqlExpression:
    suggestion = (
        select(1)
        .select_from(Suggestion)
        .join(Question, Question.id == Suggestion.question_id)
        .where(Suggestion.record_id == Record.id, Question.name == scope.question)
        .correlate(Record)
    )
    name = scope.property.split(".")[-1]
    column = getattr(Suggestion, name)
    if name in ("agent", "type"):
        return exists(suggestion.where(cast(column, sa.String).in_(filter.values)))
    return exists(suggestion.where(_json_condition(column, "$", filter)))


def _sort_expression(scope: FilterScope, ascending: bool) -> SqlExpression:
    """What to sort by; of a list of values the smallest when sorting upwards, the largest downwards."""
    if isinstance(scope, RecordFilterScope):
        return getattr(Record, str(scope.property))
    extreme = func.min if ascending else func.max
    if isinstance(scope, MetadataFilterScope):
        item = (
            func.json_each(Record.metadata_, _json_path(scope.metadata_property))
            .table_valued("value")
            .alias()
        )
        return select(extreme(item.c.value)).select_from(item).correlate(Record).scalar_subquery()
    if isinstance(scope, SuggestionFilterScope):
        name = scope.property.split(".")[-1]
        column = getattr(Suggestion, name)
        suggestions = (
            select(extreme(cast(column, sa.String)))
            .select_from(Suggestion)
            .join(Question, Question.id == Suggestion.question_id)
        )
        if name in ("value", "score"):
            item = func.json_each(column).table_valued("value").alias()
            suggestions = suggestions.join(item, true()).with_only_columns(
                extreme(item.c.value), maintain_column_froms=True
            )
        return (
            suggestions.where(Suggestion.record_id == Record.id, Question.name == scope.question)
            .correlate(Record)
            .scalar_subquery()
        )
    if isinstance(scope, ResponseFilterScope):
        answers = [Response.record_id == Record.id]
        if scope.user is not None:
            answers.append(Response.user_id == scope.user.id)
        if scope.question:
            value = func.avg(func.json_extract(Response.values, _json_path(scope.question, "value")))
        else:
            value = func.min(cast(Response.status, sa.String))
        return select(value).where(*answers).correlate(Record).scalar_subquery()
    raise ValueError(f"Cannot process request for search scope {scope}")


def _json_path(*keys: str) -> str:
    """The SQLite path of nested keys; names of Argilla's properties and questions hold no quotes."""
    return "$" + "".join(f'."{key}"' for key in keys)


def _json_condition(column: Any, path: str, filter: TermsFilter | RangeFilter) -> SqlExpression:
    """Whether the JSON value at `path`, or one value of a list there, is one of the terms or lies in the range."""
    item = func.json_each(column, path).table_valued("value", "type").alias()
    if isinstance(filter, RangeFilter):
        wanted = _between(item.c.value, filter.ge, filter.le)
    else:
        as_text = sa.case(
            (item.c.type == "true", "true"),
            (item.c.type == "false", "false"),
            else_=cast(item.c.value, sa.String),
        )
        wanted = as_text.in_([str(value) for value in filter.values])
        if numbers := [number for value in filter.values if (number := _number(str(value))) is not None]:
            wanted = or_(wanted, and_(item.c.type.in_(["integer", "real"]), item.c.value.in_(numbers)))
    return exists(select(1).select_from(item).where(wanted))


def _number(text: str) -> float | None:
    """The number that a term is (`1` and `1.0` are the same), or None."""
    try:
        return float(text)
    except ValueError:
        return None


def _between(value: SqlExpression, lowest: Any, highest: Any) -> SqlExpression:
    conditions = [value.is_not(None)]
    if lowest is not None:
        conditions.append(value >= lowest)
    if highest is not None:
        conditions.append(value <= highest)
    return and_(*conditions)


def _as_utc(value: Any) -> datetime | None:
    """A filter's date without a time zone, in UTC, as Argilla stores them; a bare number is in milliseconds."""
    if value is None:
        return None
    if isinstance(value, (int, float)):
        date = datetime.fromtimestamp(value / 1000, tz=UTC)
    else:
        date = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date
