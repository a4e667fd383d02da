"""The directory that goes with a trial or a check, and the environment that its processes inherit."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crewbench import crews
from crewbench.devices import lease

SCRIPTS = Path(__file__).resolve().parents[2]

# Snakemake sets these to a rule's `threads`; the workers set their own count, and loading may use all cores.
THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "GOTO_NUM_THREADS",
)

SCRATCH_MIB = 64
"""What a scratch directory must have room for: CrewAI's storage of each worker, the ledger."""


def roomy(directory: str) -> str:
    """The temporary directory, or /tmp where its path leaves a socket's name no room.

    A socket's path has at most 107 bytes (unix(7)), of which the scratch directory and the zygote's take 51.
    """
    return directory if len(os.fsencode(directory)) <= 107 - 51 else "/tmp"


def make_scratch(what: str) -> Path:
    """A new directory in the temporary one. Ends the program where that has too little room."""
    place = roomy(tempfile.gettempdir())
    free_mib = shutil.disk_usage(place).free // 2**20
    if free_mib < SCRATCH_MIB:
        # Agents would fail in it one by one, and the trial would be done, with a result that is none.
        sys.exit(
            f"error: {place} has {free_mib} MiB free and {what} needs {SCRATCH_MIB}: "
            "free some, or set TMPDIR to another directory"
        )
    return Path(tempfile.mkdtemp(prefix="crewbench-", dir=place))


def enter(scratch: Path) -> None:
    """From now on this process and those that it starts keep to `scratch` and off the network."""
    os.environ.update(crews.OFFLINE)
    # The leases are the host's, not this trial's: find their place before the temporary directory moves.
    os.environ["CREWBENCH_LEASE_DIR"] = str(lease.directory())
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    # CrewAI keeps settings and a key in the home directory, whatever it is told about its storage.
    os.environ["HOME"] = str(scratch)
    # Workers and the sampler are started as new interpreters and must find the library.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    for name in THREAD_LIMITS:
        os.environ.pop(name, None)


@contextmanager
def unchanged(directory: Path, keep: Collection[str] = ()) -> Iterator[None]:
    """Remove afterwards whatever is new below `directory`, but not what is called one of `keep` in it or lies
    there. A socket or a file that somebody holds open stays with its holder."""

    def found() -> set[Path]:
        everything = (Path(place, name) for place, dirs, files in os.walk(directory) for name in dirs + files)
        return {path for path in everything if path.relative_to(directory).parts[0] not in keep}

    before = found()
    try:
        yield
    finally:
        for path in sorted(found() - before, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # gone already, or not empty for something that came in between
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
