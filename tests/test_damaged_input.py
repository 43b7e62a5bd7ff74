"""No command takes what is damaged for good, or ends in a traceback: every case of tests/damaged_input.py."""

from collections.abc import Iterator

import damaged_input
import pytest
from damaged_input import Outcome, damaged_files, damaged_settings
from damaged_places import PLACES, Place


@pytest.fixture(scope="module", autouse=True)
def _working_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with damaged_input.working_folder(tmp_path_factory.mktemp("damaged")):
        yield


def failures(outcomes: Iterator[Outcome]) -> list[Outcome]:
    found = list(outcomes)
    assert found
    return [each for each in found if each.fault]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.kind)
def test_a_damaged_file_is_refused(place: Place) -> None:
    assert failures(damaged_files(place)) == []


def test_settings_that_no_stage_could_use_are_refused() -> None:
    assert failures(damaged_settings()) == []


def test_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that takes everything, one that breaks, and one that says nothing."""
    place = next(each for each in PLACES if each.kind == "guidelines")
    for code, said, fault in (
        (0, "", "taken for good"),
        ("traceback", "", "traceback"),
        (1, "", "does not say"),
    ):
        monkeypatch.setattr(damaged_input, "run", lambda _, code=code, said=said: (code, said))
        found = list(damaged_files(place))
        assert sum(each.fault.startswith(fault) for each in found) >= len(place.damages)
        assert f"{fault}" in damaged_input.table(found, whole=False)
