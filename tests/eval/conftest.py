"""The evaluation's tests share made-up rounds, one for each verdict."""

from pathlib import Path

import pytest
from synthetic_round import make_round

from accord.runs import Run, Runs


@pytest.fixture(scope="session")
def failed_round(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    return make_round(tmp_path_factory.mktemp("failed"), utility_change=-0.1)


@pytest.fixture
def passed_round(tmp_path: Path) -> tuple[Run, Runs]:
    return make_round(tmp_path, utility_change=0.1)
