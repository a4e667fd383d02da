"""NVML where there is no GPU: a small real library in its place (toy_nvml.c), whose readings a test sets.

Processes find it by LD_LIBRARY_PATH, so it is for those that a test starts, not for the test's own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

UUID = "GPU-toy-0"


def compiled(place: Path) -> Path:
    """The library's directory."""
    source = Path(__file__).with_suffix(".c")
    library = place / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-Wall", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return place


class ToyNvml:
    """`environment` makes a process see the toy instead of a driver."""

    def __init__(self, library: Path, place: Path) -> None:
        self._facts = place / "toy_nvml.txt"
        path = os.pathsep.join(filter(None, [str(library), os.environ.get("LD_LIBRARY_PATH")]))
        self.environment = {"LD_LIBRARY_PATH": path, "TOY_NVML": str(self._facts)}
        self.says()

    def says(self, *, processes: dict[int, int] | None = None, **facts: int) -> None:
        """What NVML says from now on: `processes` in MiB by pid, and toy_nvml.c's other facts."""
        lines = [f"{name} {value}" for name, value in facts.items()]
        lines += [f"process {pid} {mib}" for pid, mib in (processes or {}).items()]
        new = self._facts.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        os.replace(new, self._facts)
