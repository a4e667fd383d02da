"""What all tests share: where the checkout is, and what a missing part of the system means."""

from __future__ import annotations

from pathlib import Path

import pytest

from installed import IN_CI, require

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing part skips a test at a desk and fails it in CI, where nobody would notice the skip."""
    for mark in item.iter_markers("needs"):
        require(*mark.args)
    if item.get_closest_marker("gpu") is not None:
        from crewbench.devices.inventory import resolve

        if resolve("auto") != "gpu":
            pytest.skip("no GPU here")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which nothing passed proves nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    collecting = session.config.option.collectonly
    if IN_CI and exitstatus == 0 and not collecting and not (reporter and reporter.stats.get("passed")):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT
