"""The directory in which torch.compile keeps what it made: a part of the start state, so it is recorded.

A start state that keeps nothing gets an empty directory of the trial's own; the others share one that stays,
and that the first trial finds empty. What was there is counted before the trial touches it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crewbench.records import canonical_json

KEPT = Path("results/cache/compile")
"""Where the directories that stay are, beside the models: relative to where the workflow runs."""

MIB = 2**20


@dataclass(frozen=True, slots=True)
class CompileCache:
    """One trial's directory (None: its engine compiles nothing), and what lay in it before round 0."""

    directory: Path | None
    files: int = 0
    mib: float = 0.0

    @property
    def state(self) -> str:
        """none | empty | filled."""
        if self.directory is None:
            return "none"
        return "filled" if self.files else "empty"

    @property
    def environment(self) -> dict[str, str]:
        """What a process that compiles must have in its environment before it imports torch: torch's own
        variables (torch._inductor.config, torch._functorch.config; Triton's documentation of its knobs), and
        vLLM's (vllm/envs.py)."""
        if self.directory is None:
            return {}
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(self.directory / "inductor"),
            "TRITON_CACHE_DIR": str(self.directory / "triton"),
            "VLLM_CACHE_ROOT": str(self.directory / "vllm"),
            # In the home directory by default, which is another one in every trial, and part of vLLM's keys.
            "VLLM_CONFIG_ROOT": str(self.directory / "vllm-config"),
            "VLLM_XLA_CACHE_PATH": str(self.directory / "vllm-xla"),
            # On by default, here whatever the version's default is.
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        }

    def record(self) -> dict[str, Any]:
        """For trial.json: the state before round 0, and how much is there now. Where more is there now, the
        trial compiled what it did not find."""
        files, mib = contents(self.directory) if self.directory else (0, 0.0)
        return {
            "state": self.state,
            "directory": None if self.directory is None else self.directory.name,
            "files": self.files,
            "mib": self.mib,
            "files_after": files,
            "mib_after": mib,
        }


def at(directory: Path) -> CompileCache:
    """The cache in that directory, as it is now. Makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return CompileCache(directory.resolve(), *contents(directory))


def contents(directory: Path) -> tuple[int, float]:
    """Files and their MiB, below a directory. Empty files are locks, and say nothing."""
    sizes = []
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # another trial's temporary file
                sizes.append(os.stat(os.path.join(place, name)).st_size)
    held = [size for size in sizes if size]
    return len(held), sum(held) / MIB


def name(engine: str, model_id: str, **facts: Any) -> str:
    """A directory's name for what compiled code depends on: the engine, the model, the versions that
    compile, and the `facts` that are given."""
    versions: Mapping[str, str | None] = {
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "transformers", "triton", "vllm")},
    }
    told = canonical_json({"engine": engine, "model": model_id, "versions": versions, **facts})
    return f"{engine}-{model_id}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
