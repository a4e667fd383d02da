"""What is installed only where it is asked for: heavy packages that some engines and runners need.

A config that asks for a missing one is refused before any job starts, with the command that brings it.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Extra:
    """`modules` must be importable. `own_venv`: in an environment of its own, .venv-<name>, where that
    exists, because it pins packages that crewbench has in other versions."""

    name: str
    modules: tuple[str, ...]
    own_venv: bool = False

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"make install-{self.name}"


EXTRAS = {
    e.name: e
    for e in (
        Extra("serving", ("fastapi", "uvicorn")),
        Extra("vllm", ("vllm",), own_venv=True),
        Extra("ray", ("ray",)),
        Extra("slurm", ("snakemake_executor_plugin_slurm",)),
    )
}


def interpreter(name: str, root: Path = ROOT) -> str:
    """The Python that has the extra: its own environment's, else the one that runs this."""
    own = root / f".venv-{name}/bin/python"
    return str(own) if EXTRAS[name].own_venv and own.exists() else sys.executable


def missing(name: str, root: Path = ROOT) -> bool:
    """Whether no Python here has the extra."""
    if interpreter(name, root) != sys.executable:
        return False
    return any(importlib.util.find_spec(module) is None for module in EXTRAS[name].modules)
