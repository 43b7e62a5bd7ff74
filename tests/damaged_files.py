"""Damages of files of every kind that accord reads: from the good content to the damaged one.

Where which file is read, and so what is damaged in which way, is `damaged_places.py`'s business.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Rows, *columns: str) -> bytes:
    """Rows, or none with these columns of text."""
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns]) if columns else None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), out)
    return out.getvalue()


def as_zst(data: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


Damage = Callable[[bytes], bytes | None]
"""From the good content to the damaged one; None: there is no file."""
LONE = b"\\ud800"


def second_line(line: bytes) -> Damage:
    """Another line in the place of the second one."""

    def change(good: bytes) -> bytes:
        found = good.split(b"\n")
        return b"\n".join([found[0], line, *found[2:]])

    return change


def into_second_line(extra: bytes) -> Damage:
    """A further key of the object in the second line."""

    def change(good: bytes) -> bytes:
        found = good.split(b"\n")
        return b"\n".join([found[0], found[1][:-1] + b", " + extra + b"}", *found[2:]])

    return change


def first_text(text: bytes) -> Damage:
    """Other bytes behind the first text of the second line that is none of a key."""

    def change(good: bytes) -> bytes:
        found = good.split(b"\n")
        key, _, behind = found[1].rpartition(b'"}') if b'"}' in found[1] else found[1].rpartition(b'"')
        return b"\n".join(
            [found[0], key + text + (b'"}' if b'"}' in found[1] else b'"') + behind, *found[2:]]
        )

    return change


ANY: dict[str, Damage] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "a picture": lambda _: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00\x00\x00\xff\xfe\x80" * 3,
    "UTF-16 without a mark": lambda good: good.decode().encode("utf-16-le"),
    "UTF-16 cut off": lambda good: good.decode().encode("utf-16")[:-1],
    "a byte of Latin-1": lambda good: good[:3] + b"\xe9" + good[3:],
    "a byte of Latin-1 at the end": lambda good: good + b"\xe9",
}
"""For all files of text."""
JSON_LINES: dict[str, Damage] = ANY | {
    "white space": lambda _: b"\n \t\n\r\n",
    "half": lambda good: good[: good.index(b":", len(good) // 2)],
    "a byte short": lambda good: good.rstrip()[:-1],
    "a NUL byte": first_text(b"\x00"),
    "all NUL bytes": lambda good: bytes(len(good)),
    "NUL bytes at the end": lambda good: good + bytes(512),
    "NUL as JSON writes it": first_text(b"\\u0000"),
    "a control character": first_text(b"\x1b[31m"),
    "half of a surrogate pair": first_text(LONE),
    "half of a surrogate pair in UTF-8": first_text(b"\xed\xa0\x80"),
    "half of a surrogate pair in a key": into_second_line(b'"' + LONE + b'": 1'),
    "half of a surrogate pair in another column": into_second_line(b'"note": ["' + LONE + b'"]'),
    "no JSON": second_line(b"Seven is a prime."),
    "a number": second_line(b"7"),
    "null": second_line(b"null"),
    "true": second_line(b"true"),
    "a text": second_line(b'"text"'),
    "a list": second_line(b"[1, 2]"),
    "an empty list": second_line(b"[]"),
    "an empty object": second_line(b"{}"),
    "another object": second_line(b'{"a": 1, "b": {"c": 2}}'),
    "two objects in a line": second_line(b'{"a": 1} {"a": 1}'),
    "single quotes": lambda good: good.replace(b'"', b"'"),
    "a comma too many": lambda good: good.replace(b"}\n", b"},\n"),
    "a comment": lambda good: good + b"// the end\n",
    "a key twice": into_second_line(b'"a": 1, "a": 2'),
    "a key twice, deep": into_second_line(b'"a": [{"b": 1, "b": 2}]'),
    "a number of 5,000 digits": into_second_line(b'"a": ' + b"9" * 5000),
    "lists in lists without end": into_second_line(b'"a": ' + b"[" * 100_000 + b"]" * 100_000),
    "objects in objects without end": into_second_line(b'"a": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "lists that do not close": second_line(b"[" * 100_000),
    "a list over several lines": lambda good: b"[\n" + good.replace(b"}\n", b"},\n"),
    "an object over several lines": lambda _: b'{\n "a": 1\n}\n',
    "HTML": lambda _: b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
    "a pointer of Git LFS": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}
"""For JSON Lines."""


VALUES: dict[str, Any] = {
    "nothing": None, "a number": 7, "a fraction": 1.5, "true": True, "an empty text": "", "an empty list": [],
    "an object": {"a": 1}, "a list of numbers": [1.5, 2.5], "a list of lists": [[1], [2]], "a list of nothing": [None],
    "infinity": float("inf"), "not a number": float("nan"),
}  # fmt: skip
"""What most keys may not hold."""


def in_the_head(damage: Damage) -> Damage:
    """The same damage of the YAML between the first two lines of ---."""

    def change(good: bytes) -> bytes:
        _, head, rest = good.split(b"---\n", 2)
        return b"---\n" + (damage(head) or b"").rstrip(b"\n") + b"\n---\n" + rest

    return change


def wrong_values(rows: Rows, **right: str) -> dict[str, Damage]:
    """A value of a wrong type under each key of the second row; `right` names those that a key may hold."""
    found: dict[str, Damage] = {}
    for key in rows[0]:
        allowed = [name.replace("_", " ") for name in right.get(key, "").split()]
        for name, value in VALUES.items():
            if name not in allowed:
                found[f"{key}: {name}"] = lambda _, key=key, value=value: lines(
                    [rows[0], rows[1] | {key: value}, *rows[2:]]
                )
        found[f"no {key}"] = lambda _, key=key: lines(
            [rows[0], {name: value for name, value in rows[1].items() if name != key}, *rows[2:]]
        )
    return found


RIGHT: dict[str, Damage] = {
    "a byte-order mark": lambda good: b"\xef\xbb\xbf" + good,
    "CRLF": lambda good: good.replace(b"\n", b"\r\n"),
    "UTF-16": lambda good: good.decode().encode("utf-16"),
    "UTF-16, big end first": lambda good: b"\xfe\xff" + good.decode().encode("utf-16-be"),
    "UTF-32": lambda good: good.decode().encode("utf-32"),
    "no line feed at the end": lambda good: good.rstrip(b"\n"),
    "empty lines": lambda good: b"\n\n" + good.replace(b"\n", b"\n\n") + b"  \n",
}
LONG: dict[str, Damage] = {"a line of 5 MB": into_second_line(b'"note": "' + b"x" * 5_000_000 + b'"')}
YAML: dict[str, Damage] = ANY | {
    "white space": lambda _: b"\n \n",
    "half": lambda good: good[: len(good) // 2] + b"\n  {",
    "a NUL byte": lambda good: good.replace(b": ", b": \x00", 1),
    "a control character": lambda good: good.replace(b": ", b": \x1b", 1),
    "half of a surrogate pair": lambda good: good + b'\nextra: "\\ud800"\n',
    "half of a surrogate pair as a key": lambda good: good + b'\n"\\ud800": 1\n',
    "a text": lambda _: b"text\n",
    "a number": lambda _: b"7\n",
    "null": lambda _: b"null\n",
    "a list": lambda _: b"- 1\n- 2\n",
    "a mapping with other keys": lambda _: b"{1: 2, null: 3, 1.5: 4, true: 5}\n",
    "a list as a key": lambda good: good + b"\n? [1, 2]\n: 1\n",
    "a mapping as a key": lambda good: good + b"\n? {a: 1}\n: 1\n",
    "two documents": lambda good: good + b"\n---\na: 1\n",
    "a tab": lambda good: good + b"\na:\n\t- 1\n",
    "an unknown anchor": lambda good: good + b"\nextra: *nothing\n",
    "an alias in itself": lambda good: good + b"\nextra: &a [*a]\n",
    "aliases of aliases": lambda good: good + b"\nb0: &b0 [1, 1]\n" + b"".join(
        b"b%d: &b%d [*b%d, *b%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40)
    ),
    "merging itself": lambda good: good + b"\nextra: &a {<<: *a}\n",
    "merging a number": lambda good: good + b"\nextra: {<<: 7}\n",
    "lists without end": lambda good: good + b"\nextra: " + b"[" * 20_000,
    "sections without end": lambda good: good + b"\nextra: " + b"{a: " * 5_000,
    "a number of 5,000 digits": lambda good: good + b"\nextra: " + b"9" * 5000 + b"\n",
    "code of Python": lambda good: good + b"\nextra: !!python/object/apply:os.system ['true']\n",
    "a tag of its own": lambda good: good + b"\nextra: !wobble 1\n",
    "a date": lambda good: good + b"\nextra: 2026-13-45\n",
    "a key twice": lambda good: good + b"\nextra: 1\nextra: 2\n",
}  # fmt: skip
"""For YAML."""
JSON: dict[str, Damage] = ANY | {
    "white space": lambda _: b"\n \n",
    "half": lambda good: good[: len(good) // 2],
    "NUL bytes": lambda good: bytes(len(good)),
    "a text": lambda _: b'"text"',
    "a number": lambda _: b"7",
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "a list of lists": lambda _: b"[[1], [2]]",
    "lists without end": lambda _: b"[" * 100_000,
    "objects without end": lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5,000 digits": lambda good: good.rstrip().rstrip(b"}]") + b', "extra": ' + b"9" * 5000 + b"}",
}  # fmt: skip
"""For a JSON file that is one object."""
CSV: dict[str, Damage] = ANY | {
    "white space": lambda _: b"\n \n",
    "a header only": lambda good: good.split(b"\n")[0] + b"\n",
    "a row with more values": lambda good: good + b"a,b,c\n",
    "a row with fewer values": lambda good: good + b"a\n",
    "a quote that does not close": lambda good: good + b'"a,b\n',
    "text behind a quote": lambda good: good + b'"a" b,c\n',
    "a column twice": lambda good: good.replace(b"output", b"instruction", 1),
    "no header": lambda good: good.partition(b"\n")[2],
    "a header of nothing": lambda good: b",\n" + good.partition(b"\n")[2],
    "a NUL byte": lambda good: good + b"a\x00,b\n",
    "all NUL bytes": lambda good: bytes(len(good)),
    "half of a surrogate pair in UTF-8": lambda good: good + b"a\xed\xa0\x80,b\n",
    "an empty answer": lambda good: good + b"a,\n",
    "another delimiter": lambda good: good.replace(b",", b";").replace(b"\t", b";"),
    "JSON Lines": lambda _: b'{"messages": []}\n',
}  # fmt: skip
"""For CSV."""
PARQUET: dict[str, Damage] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "its first bytes only": lambda _: b"PAR1",
    "half": lambda good: good[: len(good) // 2],
    "without its end": lambda good: good[:-4],
    "the end only": lambda good: good[-60:],
    "its footer spoiled": lambda good: good[:-400] + b"\xa5" * 392 + good[-8:],
    "a footer of 4 GB": lambda good: good[:-8] + b"\xff\xff\xff\x7fPAR1",
    "its pages spoiled": lambda good: good[:8] + b"\xa5" * 120 + good[128:],
    "JSON Lines": lambda _: b'{"messages": []}\n',
    "no rows": lambda _: as_parquet([], "instruction", "output"),
    "bytes in a column": lambda _: as_parquet([{"instruction": b"\xff\xfe", "output": b"\x00"}] * 3),
    "numbers in a column": lambda _: as_parquet([{"instruction": 1.5, "output": 2}] * 3),
    "nothing in a column": lambda _: as_parquet([{"instruction": None, "output": None}] * 3),
    "other columns": lambda _: as_parquet([{"a": 1, "b": [1, 2]}] * 3),
    "the character NUL": lambda _: as_parquet([{"instruction": "a\x00b", "output": "c"}] * 3),
    "an empty name of a column": lambda _: as_parquet([{"": "a", "output": "c"}] * 3),
}
"""For Parquet."""
PACKED: dict[str, Damage] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "half": lambda good: good[: len(good) // 2],
    "a byte short": lambda good: good[:-1],
    "its middle spoiled": lambda good: good[:40] + b"\xa5" * 20 + good[60:],
    "JSON Lines": lambda _: b'{"messages": []}\n',
    "a picture": ANY["a picture"],
}
"""For .gz and .zst."""
BINARY: dict[str, Damage] = {
    name: PACKED[name] for name in ("missing", "empty", "half", "a picture", "JSON Lines")
}
EMPTY: dict[str, Damage] = {"empty lines": lambda good: b"\n" + good.replace(b"\n", b"\n\n")}
"""Of a CSV file; no damage."""
KEYS: dict[str, Damage] = {
    "a picture": ANY["a picture"],
    "half": lambda good: good[: len(good) // 2],
    "another kind of key": lambda _: b"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7 somebody\n",
    "NUL bytes": lambda good: bytes(len(good)),
    "UTF-16": lambda good: good.decode().encode("utf-16"),
    "letters spoiled": lambda good: good.replace(b"AAAA", b"AAA\xff"),
    "a private key": lambda _: (
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    ),
    "a JSON object": lambda _: b'{"key": 1}\n',
}
"""For public keys."""
TEXT: dict[str, Damage] = ANY | {"white space": lambda _: b"\n \n"}
TEMPLATE: dict[str, Damage] = ANY | {
    "white space": lambda _: b"\n \n",
    "a block that does not close": lambda _: b"{% for message in messages %}",
    "an unknown tag": lambda _: b"{% wobble %}",
    "an unknown filter": lambda _: b"{{ messages | wobble }}",
    "an unknown name that is called": lambda _: b"{{ wobble() }}",
    "reaches for Python": lambda _: b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "includes a file": lambda _: b"{% include '/etc/passwd' %}",
    "refuses everything": lambda _: b"{{ raise_exception('no') }}",
    "divides by zero": lambda _: b"{{ 1 / 0 }}",
    "calls itself without end": lambda _: b"{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "nested without end": lambda _: b"{% if true %}" * 5000 + b"{% endif %}" * 5000,
    "brackets without end": lambda _: b"{{ " + b"(" * 20_000 + b" }}",
    "a power without end": lambda _: b"{{ 9 ** 9 ** 9 }}",
    "drops what is said": lambda _: b"{% for message in messages %}{{ message['role'] }}{% endfor %}",
    "half of a surrogate pair": lambda good: good + b"{{ '\\ud800' }}",
}
"""For a chat template."""
