"""One small study, run for real once; each test works on a copy of it."""

import pytest

from checkout import Checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A checkout whose study is done. Do not change it: take `copy`."""
    made = Checkout.make(tmp_path_factory.mktemp("finished") / "crewbench")
    made.first_run = made.run()
    return made


@pytest.fixture
def copy(finished, tmp_path):
    """A checkout of one's own in which everything is done."""
    return finished.copy(tmp_path / "crewbench")
