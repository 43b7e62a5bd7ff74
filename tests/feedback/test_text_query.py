"""The text query's words, language and index, on plain SQLite.

`test_stock_engine.py` compares the whole with the stock engine.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from feedback.argilla.server.inside.accord_argilla import text_index
from feedback.argilla.server.inside.accord_argilla.text_query import (
    Both,
    Either,
    Everything,
    Fuzzy,
    Not,
    Phrase,
    Prefix,
    Query,
    Word,
    edits,
    full_text_expression,
    is_near,
    parse,
)
from feedback.argilla.server.inside.accord_argilla.words import words_of

A, B, C = Word("a"), Word("b"), Word("c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Rayleigh scattering, the-end", ["rayleigh", "scattering", "the", "end"]),
        ("don't stop; 'quoted'", ["don't", "stop", "quoted"]),
        ("1,000 or 3.50 at example.com. U.S.A.", ["1,000", "or", "3.50", "at", "example.com", "u.s.a"]),
        ("a1.b2 3,a", ["a1", "b2", "3", "a"]),  # a full stop joins two letters or two digits
        ("foo_bar __ _x", ["foo_bar", "_x"]),
        ("C++ is C#", ["c", "is", "c"]),
        ("Éclairs e\u0301clair", ["éclairs", "e\u0301clair"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("日本語のテキスト", ["日", "本", "語", "の", "テキスト"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ΟΔΟΣ İ", ["οδοσ", "i"]),
        ("x² 🎉👩\u200d🚀🇩🇪", ["x", "🎉", "👩\u200d🚀", "🇩🇪"]),
        ("...", []),
        ("a" * 300, ["a" * 255, "a" * 45]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert words_of(f"é {text}") == ["é", *words]  # text beyond ASCII takes another path, to the same end


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a b", Both(A, B)),
        ("a + b", Both(A, B)),
        ("a | b", Either(A, B)),
        ("a | b c", Both(Either(A, B), C)),  # from left to right
        ("a b | c", Either(Both(A, B), C)),
        ("a (b | c)", Both(A, Either(B, C))),
        ("-a", Not(A)),
        ("--a", A),
        ("- a", A),  # a space takes the denial back
        ("a -(b c)", Both(A, Not(Both(B, C)))),
        ("a-b", Word("a-b")),
        ('"a b" c', Both(Phrase("a b", 0), C)),
        ('"a b"~2', Phrase("a b", 2)),
        ("ab*", Prefix("ab")),
        ("a*b", Word("a*b")),
        ("*", Everything()),
        ("a~1", Fuzzy("a", 1)),
        ("a~", Fuzzy("a", 2)),
        ("a~9 b", Both(Fuzzy("a", 2), B)),
        ("a~0", A),
        (r"\-a", Word("-a")),
        (r"a\*", Word("a*")),
        ("a | (", A),
        (")) a", A),
        ('a "', A),
        ("a ()", A),
        ('a "" b', Both(A, B)),
        ("", None),
        ("-", None),
        ("() | +", None),
    ],
)
def test_language(text: str, tree: Query | None) -> None:
    assert parse(text) == tree


def test_a_part_without_words_is_left_out_unless_something_may_hold_it_whole() -> None:
    assert parse("a ...", has_keywords=False) == A
    assert parse("...", has_keywords=False) is None
    assert parse("a ...", has_keywords=True) == Both(A, Word("..."))


@pytest.mark.parametrize(
    ("term", "word", "expected"),
    [
        ("magic", "magic", 0),
        ("magic", "MAGIK", 1),
        ("magic", "mgiac", 2),
        ("a", "abcdef", 3),
        ("=" + b"Usr".hex(), "Us", 1),
    ],
)
def test_edits(term: str, word: str, expected: int) -> None:
    assert edits(term, word) == expected


@pytest.mark.parametrize(
    ("phrase", "slop"),
    [
        ("makes the", 1),
        ("scattering sky", 1),
        ("rayleigh sky", 2),
        ("the makes", 3),
        ("sky sky", 99),
        ("zebra", 99),
    ],
)
def test_near(phrase: str, slop: int) -> None:
    """`rayleigh scattering makes sky the`: moves needed are counted by hand; 99 stands for never."""
    words = "rayleigh scattering makes sky the"
    assert not is_near(words, phrase, slop - 1)
    assert is_near(words, phrase, slop) is (slop < 99)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Argilla's two tables, as far as the index looks at them, with one dataset of four kinds of fields."""
    with closing(sqlite3.connect(tmp_path / "texts.db")) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("CREATE TABLE datasets (id TEXT PRIMARY KEY)")
        connection.execute(
            "CREATE TABLE fields (dataset_id TEXT REFERENCES datasets ON DELETE CASCADE, name TEXT, settings TEXT)"
        )
        connection.execute(
            "CREATE TABLE records (id TEXT PRIMARY KEY, dataset_id TEXT REFERENCES datasets ON DELETE CASCADE, "
            "fields TEXT, status TEXT, inserted_at TEXT)"
        )
        connection.execute("INSERT INTO datasets VALUES ('d')")
        kinds = {"prompt": "chat", "answer": "text", "page": "custom", "photo": "image"}
        for name, kind in kinds.items():
            connection.execute("INSERT INTO fields VALUES ('d', ?, ?)", (name, json.dumps({"type": kind})))
        connection.commit()
        yield connection


def add(database: sqlite3.Connection, record: str, **fields: object) -> None:
    database.execute(
        "INSERT INTO records VALUES (?, 'd', ?, 'pending', '2026')", (record, json.dumps(fields))
    )
    database.commit()


def found(database: sqlite3.Connection, query: str) -> list[str]:
    leaf = parse(query)
    assert isinstance(leaf, Word | Prefix | Phrase)
    sql = (
        "SELECT record || '.' || field FROM accord_texts JOIN accord_fields ON id = accord_texts.rowid "
        "WHERE accord_texts MATCH ? ORDER BY 1"
    )
    return [row[0] for row in database.execute(sql, (full_text_expression(leaf),))]


def test_the_index_follows_every_change(database: sqlite3.Connection) -> None:
    assert text_index.build(database) is True
    chat = [{"role": "user", "content": "Why is it blue?"}, {"role": "assistant", "content": "The sky"}]
    add(
        database,
        "r1",
        prompt=chat,
        answer="Rayleigh's blue",
        page={"a": "Custom"},
        photo="data:blue",
        extra=None,
    )
    add(database, "r2", answer="blue-ish the end")
    assert found(database, "blue") == ["r1.answer", "r1.prompt", "r2.answer"]
    assert found(database, "user") == ["r1.prompt"]
    assert found(database, "User") == []  # a role is searched as it stands
    assert found(database, "custom") == ["r1.page"]
    assert found(database, '"blue the"') == []  # the next message's role stands between
    assert found(database, '"ish the"') == ["r2.answer"]
    assert found(database, "ray*") == ["r1.answer"]
    assert found(database, "the-end") == ["r2.answer"]
    database.execute("UPDATE records SET status = 'completed'")
    database.execute("UPDATE records SET fields = ? WHERE id = 'r2'", (json.dumps({"answer": "green"}),))
    assert found(database, "blue") == ["r1.answer", "r1.prompt"]
    assert found(database, "green") == ["r2.answer"]
    database.rollback()
    assert found(database, "green") == []
    database.execute("DELETE FROM records WHERE id = 'r2'")
    assert found(database, "blue") == ["r1.answer", "r1.prompt"]
    database.execute("DELETE FROM datasets")  # takes fields and records with it
    for table in ("accord_texts", "accord_fields"):
        assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    database.commit()


def test_an_older_database_is_indexed_at_start(database: sqlite3.Connection) -> None:
    add(database, "r1", answer="written before there was an index")
    assert text_index.build(database) is True
    assert found(database, "index") == ["r1.answer"]
    assert text_index.build(database) is False
    database.execute("DROP TRIGGER accord_texts_insert")  # as a migration that copies the table would
    add(database, "r2", answer="missed by the index")
    assert found(database, "index") == ["r1.answer"]
    assert text_index.build(database) is True
    assert found(database, "index") == ["r1.answer", "r2.answer"]


def test_a_program_without_our_functions_cannot_leave_the_index_wrong(
    database: sqlite3.Connection, tmp_path: Path
) -> None:
    text_index.build(database)
    add(database, "r1", answer="blue")
    with closing(sqlite3.connect(tmp_path / "texts.db")) as other:
        assert other.execute("SELECT count(*) FROM records").fetchone() == (1,)
        with pytest.raises(sqlite3.OperationalError, match="accord_words"):
            other.execute("UPDATE records SET fields = '{}'")
        other.execute("DELETE FROM records")
        other.commit()
    assert found(database, "blue") == []
