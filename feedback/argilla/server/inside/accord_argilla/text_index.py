"""The full-text index of the records' fields: tables in Argilla's own database, kept right by SQL triggers.

`accord_fields` numbers the fields of all records; `accord_texts` is an FTS5 table of the words that `indexed_words`
finds in each. A trigger runs within the statement that changes a record, so whatever is committed is indexed, and
nothing else is. The triggers call a function of ours: a program without it can read the database, but is refused
when it tries to add records or change their texts.
"""

import sqlite3

from . import text_query
from .words import indexed_words

VERSION = 1  # raise it when `indexed_words` finds other words, so that indexes of old databases are made anew

# every token that we write is one token for FTS5 too: ASCII's letters, digits and these, and all that is not ASCII
_TOKENIZER = "ascii tokenchars '" + text_query.WORD_PUNCTUATION.replace("'", "''") + "='"

_INSERT = """
INSERT INTO accord_fields (record, field)
SELECT {row}.id, fields.name
FROM {source} JOIN fields ON fields.dataset_id = {row}.dataset_id AND fields.name = given.key
WHERE given.value IS NOT NULL AND json_extract(fields.settings, '$.type') <> 'image';
INSERT INTO accord_texts (rowid, words)
SELECT accord_fields.id, accord_words(json_extract(fields.settings, '$.type'), given.value)
FROM {source} JOIN fields ON fields.dataset_id = {row}.dataset_id AND fields.name = given.key
JOIN accord_fields ON accord_fields.record = {row}.id AND accord_fields.field = fields.name
"""
_INSERT_NEW = _INSERT.format(row="NEW", source="json_each(NEW.fields) AS given")
_INSERT_ALL = _INSERT.format(row="records", source="records JOIN json_each(records.fields) AS given")
_DELETE_OLD = """
DELETE FROM accord_texts WHERE rowid IN (SELECT id FROM accord_fields WHERE record = OLD.id);
DELETE FROM accord_fields WHERE record = OLD.id
"""

SCHEMA = {
    "accord_fields": "CREATE TABLE accord_fields (id INTEGER PRIMARY KEY, record TEXT, field TEXT)",
    "accord_fields_by_record": "CREATE UNIQUE INDEX accord_fields_by_record ON accord_fields (record, field)",
    "accord_texts": f'CREATE VIRTUAL TABLE accord_texts USING fts5(words, tokenize="{_TOKENIZER}")',
    "accord_vocabulary": "CREATE VIRTUAL TABLE accord_vocabulary USING fts5vocab(accord_texts, row)",
    "accord_texts_insert": f"CREATE TRIGGER accord_texts_insert AFTER INSERT ON records BEGIN {_INSERT_NEW}; END",
    "accord_texts_update": (
        f"CREATE TRIGGER accord_texts_update AFTER UPDATE OF fields ON records BEGIN {_DELETE_OLD}; {_INSERT_NEW}; END"
    ),
    "accord_texts_delete": f"CREATE TRIGGER accord_texts_delete AFTER DELETE ON records BEGIN {_DELETE_OLD}; END",
    "accord_texts_version": f"CREATE VIEW accord_texts_version AS SELECT {VERSION} AS version",
    # not of the texts: what an annotator's queue needs of a record, without the pages that hold its fields
    "accord_records": "CREATE INDEX accord_records ON records (dataset_id, inserted_at, id, status)",
}


def add_functions(connection: sqlite3.Connection) -> None:
    """Make the functions that the triggers and text queries call known to a connection."""
    connection.create_function("accord_words", 2, indexed_words, deterministic=True)
    connection.create_function("accord_edits", 2, text_query.edits, deterministic=True)
    connection.create_function("accord_is_near", 3, text_query.is_near, deterministic=True)


def build(connection: sqlite3.Connection) -> bool:
    """Make the index if it is not there as described above; whether it had to be made.

    Args:
        connection: to a database with Argilla's tables; whatever it holds is indexed in one transaction.
    """
    add_functions(connection)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name LIKE 'accord_%' AND sql IS NOT NULL"
    )
    present = {name: sql for name, sql in rows if name in SCHEMA}
    if present == SCHEMA:
        return False
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for name in reversed(SCHEMA):
            kind = (
                SCHEMA[name]
                .removeprefix("CREATE VIRTUAL ")
                .removeprefix("CREATE UNIQUE ")
                .removeprefix("CREATE ")
            )
            connection.execute(f"DROP {kind.split()[0]} IF EXISTS {name}")
        for statement in (*SCHEMA.values(), *_INSERT_ALL.split(";")):
            connection.execute(statement)
    return True
