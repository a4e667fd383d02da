"""Finds the processes of a test by a mark in their environment, which children inherit."""

import os
import select
import signal
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MARK = "CREWBENCH_TEST_MARK"
GONE_S = 60.0
"""How long processes may take to be gone after a kill, on a machine that does much else."""


def new_mark() -> str:
    return uuid.uuid4().hex


def marked(mark: str) -> list[int]:
    """The living processes (no zombies) that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def kill(pids: Iterable[int]) -> None:
    """End these processes, those that have not ended by now: some of them end with another."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_gone(pids: list[int], seconds: float) -> list[int]:
    """Wait until these processes have ended; returns those that have not after `seconds`."""
    end = time.monotonic() + seconds
    left = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        os.close(fd)
        if not ready:
            left.append(pid)
    return left
