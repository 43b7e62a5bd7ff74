"""The text query's language, on the words of two fields."""

import json

import pytest

from feedback.server.inside.accord_argilla.text_query import matches

FIELDS = json.dumps(
    {
        "prompt": [{"role": "user", "content": "What about Éclairs in number 7?"}],
        "response_1": "Rayleigh scattering makes the sky blue. The-end",
        "response_2": "Unicorn_magic, unicorns!",
    }
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("unicorns", True),
        ("UNICORNS", True),
        ("unicorn", False),  # whole words only
        ("unicorn*", True),
        ("éclairs", True),
        ("eclairs", False),
        ("7", True),
        ("user", True),  # roles are searched too, as in the stock engine
        ("rayleigh unicorns", True),  # each word in any field
        ("rayleigh zebra", False),
        ("rayleigh | zebra", True),
        ('"scattering makes"', True),
        ('"makes scattering"', False),
        ('"blue unicorn_magic"', False),  # a phrase does not cross from field to field
        ("rayleigh -zebra", True),
        ("rayleigh -unicorns", False),
        ('-"sky blue"', False),
        ("the-end", True),
        ("(zebra | sky) blue", True),
        ("(zebra | lion) blue", False),
        ("-(zebra | lion) blue", True),
        ("sky | (", True),
        (")) blue", True),
        ("", True),
        ("...", True),
        ("-", True),
        ("*", True),
        ("'; DROP TABLE records; --", False),
    ],
)
def test_query(query: str, expected: bool) -> None:
    assert matches(FIELDS, query, None) is expected


def test_one_field_can_be_asked() -> None:
    assert matches(FIELDS, "unicorns", "response_2")
    assert not matches(FIELDS, "unicorns", "response_1")
    assert not matches(FIELDS, "unicorns", "no_such_field")
