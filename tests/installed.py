"""What a test needs and this machine may lack: skipped at a desk, failed in CI, where nobody sees a skip."""

import os
import shutil

import pytest

from crewbench import extras

IN_CI = os.environ.get("CREWBENCH_CI") == "1"


def missing(*names: str) -> list[str]:
    """Those of these programs of the system, or extras (crewbench/extras.py), that are not there."""
    return [n for n in names if (extras.missing(n) if n in extras.EXTRAS else shutil.which(n) is None)]


def require(*names: str) -> None:
    if lacking := missing(*names):
        (pytest.fail if IN_CI else pytest.skip)(f"not installed: {', '.join(lacking)}")
