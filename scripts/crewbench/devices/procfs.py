"""What /proc says of a process, so that a process id is never taken for the one that had it before."""

from __future__ import annotations

from pathlib import Path


def started(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie.

    Field 22 of /proc/PID/stat (proc(5)). A process is the same one only if pid and start are.
    """
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def parent(pid: int) -> int | None:
    """The parent's pid, None if the process is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def name(pid: int) -> str | None:
    """The program's name as the kernel has it, 15 bytes at most; None if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return None


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether `pid` is `ancestor` or a child of it, or of its children, and so on."""
    seen: set[int] = set()
    current: int | None = pid
    while current and current not in seen:
        if current == ancestor:
            return True
        seen.add(current)
        current = parent(current)
    return False


def alive(pid: int, start: int) -> bool:
    return started(pid) == start


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on: the second is the name, which may hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split() or None
