"""The modes: each file here is one way to deploy the crew, a pure function to Deployments.

A mode is found by itself: a module with a `MODE`. To add one, add a file (CONTRIBUTING.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crewbench.deployment import Deployment
from crewbench.trial import Cell


@dataclass(frozen=True, slots=True)
class Mode:
    """`attempts(cell)` are tried in order until one runs without an OOM; `unfit(cell)` says why a
    cell makes no sense, or None. `options` are the variant options that the mode reads. `rank` orders the
    modes in tables and figures; speed-ups are against the mode that is the `baseline`."""

    name: str
    title: str
    idea: str
    rank: int
    attempts: Callable[[Cell], Iterable[Deployment]]
    unfit: Callable[[Cell], str | None]
    baseline: bool = False
    options: tuple[str, ...] = ()


def _discover() -> dict[str, Mode]:
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found = sorted((m.MODE for m in modules if hasattr(m, "MODE")), key=lambda m: (m.rank, m.name))
    return {mode.name: mode for mode in found}


MODES: dict[str, Mode] = {}


def get(name: str) -> Mode:
    """The mode of that name; KeyError with the known names otherwise."""
    try:
        return MODES[name]
    except KeyError:
        raise KeyError(f"unknown mode {name!r}; known: {', '.join(MODES)}") from None


MODES.update(_discover())
