"""What a model shall be measured by, so that it may not learn from it: held-out rows, and items of suites."""

from collections.abc import Iterable, Sequence

from accord.data.quality.findings import Finding, answer_turns, question, said
from accord.data.quality.near import Near, NearTexts
from accord.data.quality.overlap import RowOverlaps, TrainingText
from accord.records import Message, Row, content_id


class HeldOut:
    """Questions and items, and which rows come too near to them."""

    def __init__(
        self, rows: Sequence[Row], places: Sequence[str], items: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Args: rows whose questions are held out, the place of each, and further texts with their names first."""
        asked = [question(row) for row in rows]
        self._texts = NearTexts()
        whole = [*zip(places, map(said, asked), strict=True), *items]
        for _ in self._texts.nearest((text for _, text in whole), notes=lambda i: whole[i][0]):
            pass
        last = [(place, turns[-1].text) for place, turns in zip(places, asked, strict=True) if turns]
        named = [*last, *whole[len(places) :]]
        self._names = [name for name, _ in named]
        self.digest = content_id([[text for _, text in each] for each in (whole, named)], 64)
        """What identifies it."""
        self._overlaps = RowOverlaps([text for _, text in named])

    def near(self, rows: Sequence[Row]) -> list[Finding]:
        """The rows whose question, or one of whose users' turns, is near one of these."""
        asked = [(i, text) for i, row in enumerate(rows) for text in _asked(question(row))]
        best: dict[int, Near] = {}
        for (i, _), near in zip(asked, self._texts.nearest(text for _, text in asked), strict=True):
            if near and (i not in best or near.similarity > best[i].similarity):
                best[i] = near
        return [
            Finding("near_heldout", i, f"{near.similarity:.2f} like {near.note}") for i, near in best.items()
        ]

    def contaminated(self, rows: Sequence[Row]) -> list[Finding]:
        """The rows that hold one of these anywhere: word for word, edited or reordered, as the gate's check says it."""
        found = []
        for i, row in enumerate(rows):
            turns = [*question(row), *(turn for each in answer_turns(row) for turn in each)]
            for number, overlap in self._overlaps.of(TrainingText(tuple(turn.text for turn in turns), "", i))[
                :1
            ]:
                found.append(
                    Finding(
                        "contamination", i, f"{overlap.how}, {overlap.share:.0%} of {self._names[number]}"
                    )
                )
        return found


def _asked(turns: Sequence[Message]) -> list[str]:
    return list(dict.fromkeys([said(turns), *(turn.text for turn in turns if turn.role == "user")]))
