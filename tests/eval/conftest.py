"""The evaluation's tests share made-up rounds, one for each verdict."""

from pathlib import Path

import pytest
from synthetic_round import copied, make_round

from accord.runs import Run, Runs


@pytest.fixture(scope="session")
def failed_round(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    return make_round(tmp_path_factory.mktemp("failed"), utility_change=-0.1)


@pytest.fixture(scope="session")
def made_to_pass(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    return make_round(tmp_path_factory.mktemp("passed"), utility_change=0.1)


@pytest.fixture
def passed_round(made_to_pass: tuple[Run, Runs], tmp_path: Path) -> tuple[Run, Runs]:
    """A copy for a test that changes it; only the file of prompts is not its own."""
    return copied(made_to_pass, tmp_path)
