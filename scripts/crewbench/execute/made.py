"""How many tokens a worker has made in the step that runs, in a file that outlives a worker that is killed.

A shared mapping of eight bytes: counting is one store to memory, without a system call, and the kernel keeps
what was stored when the process is gone.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import suppress
from pathlib import Path

_COUNT = struct.Struct("=Q")


class Made:
    """The worker's side. Without a path, or a place there, it counts for nobody."""

    def __init__(self, path: str | None) -> None:
        held: bytearray | mmap.mmap = bytearray(_COUNT.size)
        if path is not None:
            with suppress(OSError), open(path, "w+b", buffering=0) as file:
                # Written, not only made longer: storing to a page that a full disk has no room for kills.
                file.write(_COUNT.pack(0))
                held = mmap.mmap(file.fileno(), _COUNT.size)
        self._count = memoryview(held).cast("Q")

    def one_more(self) -> None:
        self._count[0] += 1

    def reset(self) -> None:
        self._count[0] = 0


def read(path: str | None) -> int | None:
    """The trial's side: the count, also after the worker's death; None where nobody counts."""
    try:
        return None if path is None else _COUNT.unpack(Path(path).read_bytes())[0]
    except (OSError, struct.error):
        return None


def leave(path: str | None, count: int | None) -> None:
    """The count of a worker of another host, for `read` here."""
    if path is not None and count is not None:
        with suppress(OSError):
            Path(path).write_bytes(_COUNT.pack(count))
