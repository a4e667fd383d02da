"""What all tests share: where the checkout is, and what a missing part of the system means."""

from __future__ import annotations

from pathlib import Path

import pytest

from installed import IN_CI, require

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two files at once: they wait for processes much of the time. On a GPU they would meet each other."""
    return 1 if on_gpus() else 2


def on_gpus() -> bool:
    from crewbench.devices.inventory import resolve

    return resolve("auto") == "gpu"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing part skips a test at a desk and fails it in CI, where nobody would notice the skip."""
    for mark in item.iter_markers("needs"):
        require(*mark.args)
    if item.get_closest_marker("gpu") is not None and not on_gpus():
        pytest.skip("no GPU here")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which nothing passed proves nothing."""
    if hasattr(session.config, "workerinput"):  # one of several processes; the first one knows all results
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    collecting = session.config.option.collectonly
    if IN_CI and exitstatus == 0 and not collecting and not (reporter and reporter.stats.get("passed")):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT
