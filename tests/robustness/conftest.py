"""The pipeline that all tests of robustness share; none of them may change a file of it."""

from collections.abc import Iterator

import pytest

from tests.robustness.launcher import Launcher
from tests.robustness.pipeline import Made, make, tree


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    made = make(tmp_path_factory.mktemp("made"))
    before = tree(made.folder)
    yield made
    assert tree(made.folder) == before


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    with Launcher() as launcher:
        yield launcher
