"""Rows that repeat an earlier one, turn by turn, and rows that answer what an earlier one asks, but otherwise."""

from array import array
from collections.abc import Sequence

from accord.data.quality.findings import Finding, answer_turns, answers, question, words
from accord.data.quality.notes import Notes
from accord.records import Demonstration, Row, content_id, conversation_id


class Duplicates:
    """The rows so far, at about 120 bytes each."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._places = Notes()

    def find(self, rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
        """The rows among the next ones that repeat an earlier one."""
        found = []
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            turns = [conversation_id(each) for each in [question(row), *answer_turns(row)]]
            identity = _number([turns, getattr(row, "label", None)])
            if identity in self._first:
                earlier = self._places[self._first[identity]].decode("utf-8", "surrogateescape")
                found.append(Finding("duplicates", i, f"the same as {earlier}"))
            else:
                self._first[identity] = self._places.add(place.encode("utf-8", "surrogateescape"))
        return found


class Disagreements:
    """The questions so far with their first answers, at about 130 bytes each."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._answers = array("Q")
        self._places = Notes()

    def find(self, rows: Sequence[Row], places: Sequence[str]) -> list[Finding]:
        """The demonstrations among the next ones whose conversation up to the last answer had another answer."""
        found = []
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            if not isinstance(row, Demonstration):
                continue
            asked = _number([[turn.role, words(turn.text), turn.tools] for turn in question(row)])
            answer = _number(words(answers(row)[0]) or answers(row))
            first = self._first.get(asked)
            if first is None:
                self._first[asked] = self._places.add(place.encode("utf-8", "surrogateescape"))
                self._answers.append(answer)
            elif self._answers[first] != answer:
                earlier = self._places[first].decode("utf-8", "surrogateescape")
                found.append(Finding("disagreement", i, f"{earlier} answers otherwise"))
        return found


def _number(value: object) -> int:
    """64 bits of a value's hash."""
    return int(content_id(value, 16), 16)
