"""The directory in which torch.compile keeps what it made: a part of the start state, so it is recorded.

A start state that keeps nothing gets an empty directory of the trial's own; the others share one that stays.
What a worker needs of it is made by one that starts before the trial's clock, once; what is there is counted
before round 0.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crewbench.records import canonical_json

KEPT = Path("results/cache/compile")
"""Where the directories that stay are, beside the models: relative to where the workflow runs."""

MIB = 2**20


@dataclass(frozen=True, slots=True)
class CompileCache:
    """One trial's directory (None: its engine compiles nothing), and what lay in it when it was looked at.

    `kind` names the worker that is to find its code here, `whole` says whether one of that kind has once come
    up from it. `made` is how a worker ended that was started for it before this trial's clock ("" where none
    was), `made_s` the seconds that took."""

    directory: Path | None
    files: int = 0
    mib: float = 0.0
    kind: str = ""
    whole: bool = False
    made: str = ""
    made_s: float | None = None

    @property
    def state(self) -> str:
        """none | empty | partly | filled."""
        if self.directory is None:
            return "none"
        if not self.files:
            return "empty"
        return "filled" if self.whole else "partly"

    @property
    def lacking(self) -> bool:
        """Whether it is kept, and no worker of this kind has come up from it yet."""
        return self.directory is not None and not self.whole

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
            # Else in the home directory, which is a new one in every trial: the driver's own compiler, and
            # the kernels of a library that vLLM may use.
            "CUDA_CACHE_PATH": str(self.directory / "cuda"),
            "FLASHINFER_WORKSPACE_BASE": str(self.directory / "flashinfer"),
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
            "made": self.made,
            "made_s": self.made_s,
            "files_after": files,
            "mib_after": mib,
        }


def at(directory: Path, kind: str = "") -> CompileCache:
    """The cache in that directory as it is now, for a worker of that kind (any: ""). Makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = not kind or (directory / kind).exists()
    return CompileCache(directory.resolve(), *contents(directory), kind, whole)


def made(directory: Path, kind: str, ended: str, seconds: float) -> CompileCache:
    """The cache after a worker of that kind was started for it before the trial's clock, took so many seconds
    and ended as that status: it is whole where that is "ok"."""
    if ended == "ok":
        (directory / kind).touch()  # empty, so it counts as nothing
    return replace(at(directory, kind), made=ended, made_s=seconds)


def kind(**facts: Any) -> str:
    """A file's name for what one worker compiles beside what `name` tells apart: its shape, say."""
    return f"whole-{_short(facts)}"


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
    told = {"engine": engine, "model": model_id, "versions": versions, **facts}
    return f"{engine}-{model_id}-{_short(told)}"


def _short(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:8]


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
