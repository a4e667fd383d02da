"""Where and with what a trial ran: what a reader needs to trust a number or to repeat it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from crewbench.devices import allocation

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "crewai",
    "langchain-huggingface",
    "langchain-core",
    "snakemake",
    "ray",
    "nvidia-ml-py",
    "pandas",
)


def host() -> str:
    """This host's name, as every row carries it."""
    return allocation.host()


def environment(root: Path) -> dict[str, Any]:
    """Versions, hardware and commit. What cannot be found out is None.

    A copy of the code without its git directory says its commit in CREWBENCH_COMMIT.
    """
    cpu = _cpu()
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": cpu.get("model name"),
        "virtual_machine": "hypervisor" in cpu.get("flags", "").split(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "driver": _driver(),
        "commit": _git(root, "rev-parse", "HEAD") or os.environ.get("CREWBENCH_COMMIT"),
        "modified": None if changes is None else bool(changes),
    }


def _cpu() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _driver() -> str | None:
    import pynvml

    with suppress(pynvml.NVMLError):  # it may have died during the trial, too
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    return None


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def pressure() -> dict[str, float]:
    """Seconds in which some task waited for a resource since boot (PSI), and stolen CPU seconds.

    Keys: cpu_some_s, memory_some_s, memory_full_s, io_some_s (where the kernel keeps them), steal_s.
    Source: Linux, Documentation/accounting/psi.rst; proc(5) for /proc/stat.
    """
    seen: dict[str, float] = {}
    for resource in ("cpu", "memory", "io"):
        with suppress(OSError):
            for line in Path("/proc/pressure", resource).read_text().splitlines():
                kind, *fields = line.split()
                values = dict(f.split("=") for f in fields)
                seen[f"{resource}_{kind}_s"] = int(values["total"]) / 1e6
    ticks = Path("/proc/stat").read_text().splitlines()[0].split()
    seen["steal_s"] = int(ticks[8]) / os.sysconf("SC_CLK_TCK")
    return seen


def pressure_since(before: dict[str, float]) -> dict[str, float]:
    """How much of each grew since `before`, in seconds."""
    return {key: value - before.get(key, 0.0) for key, value in pressure().items()}
