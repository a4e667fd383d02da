"""Leases: one trial's exclusive hold of devices on this host, by flock, so that the kernel gives them back.

A lease is a set of locked files in a directory that all users of the host share. A lock belongs to the open
file, not to a process: whoever got the descriptors (`Lease.fds`) keeps the devices leased, and they are free
once the last such process is gone, however it went.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from crewbench.devices import allocation
from crewbench.devices.inventory import Device, TooFewDevices

# Waiting is blocking, on inotify. The kernel announces a closed file just before it drops its lock, and
# inotify may be missing: so a waiter also looks again after this long.
LOOK_AGAIN_S = 0.25
HOST_TEMPORARY = Path("/tmp")
_IN_CLOSE = 0x08 | 0x10


class LeaseTimeout(TimeoutError):
    """No lease by the deadline. The text says who holds what."""


@dataclass(slots=True)
class Lease:
    """The devices that a trial holds. Release it, or let its processes end.

    `fds` are inheritable: hand them to every child that uses the devices (subprocess: `pass_fds=lease.fds`),
    then the devices stay leased while any of them lives. `waited_s` is how long it took to get them.
    """

    devices: tuple[Device, ...]
    fds: tuple[int, ...]
    exclusive_host: bool
    waited_s: float
    _was_shared: bool = False

    @property
    def shared_host(self) -> bool:
        """Whether another lease was held on this host at any time during this one."""
        return self._was_shared or any("shared" in note for fd in self.fds for note in _notes(fd))

    def release(self) -> None:
        """Give up this process's hold. A child that was given the descriptors keeps its own."""
        self._was_shared = self.shared_host
        fds, self.fds = self.fds, ()
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def directory() -> Path:
    """Where the lock files are: CREWBENCH_LEASE_DIR, or a directory of the host's temporary one that every
    user may write in. Must be on a local file system."""
    chosen = os.environ.get("CREWBENCH_LEASE_DIR")
    # Not TMPDIR: users and batch jobs have their own, and leases that do not meet exclude nobody.
    common = HOST_TEMPORARY if os.access(HOST_TEMPORARY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    path = Path(chosen) if chosen else common / "crewbench-leases"
    try:
        path.mkdir(parents=True)
        path.chmod(0o1777)
    except FileExistsError:
        pass
    return path


def lease(
    devices: Sequence[Device],
    count: int,
    exclusive_host: bool = True,
    deadline_s: float | None = None,
    holder: str = "",
    host: str | None = None,
) -> Lease:
    """Hold `count` of `devices` and wait until they can be had.

    With `exclusive_host` no other lease is held on the host at the same time, and it is the first `count`;
    without, others that are not exclusive may be held too, and it is the first free ones. `deadline_s` is how
    long to wait at most, None for ever; `holder` says who holds them (a trial id); `host` is the host's name
    where several are played by one. Raises TooFewDevices, LeaseTimeout.

    One ticket for the whole host is held while acquiring and only then: so two that each want several
    devices cannot hold half of them each, and one that wants all is not overtaken for ever.
    """
    if not 1 <= count <= len(devices):
        raise TooFewDevices(f"{count} devices to lease of {len(devices)}: ask for 1 to {len(devices)}")
    began = time.monotonic()
    place, host = directory(), host or allocation.host()
    waiter = _Waiter(place, host, None if deadline_s is None else began + deadline_s)
    held: list[int] = []
    try:
        ticket = _open(place / f"{host}.ticket")
        try:
            waiter.until(lambda: _try(ticket, fcntl.LOCK_EX), "the host's ticket")
            host_fd = _open(place / f"{host}.host")
            held.append(host_fd)
            how = fcntl.LOCK_EX if exclusive_host else fcntl.LOCK_SH
            waiter.until(lambda: _try(host_fd, how), f"host {host}")
            # Alone on the host, always the same devices: a lease that just ended may not have let go of all
            # of them yet, and a trial must not land on others for that.
            choice = devices[:count] if exclusive_host else devices
            got = _devices(place, host, choice, count, waiter, held)
            mine = {"pid": os.getpid(), "holder": holder}
            for _, fd in got:
                os.ftruncate(fd, 0)
                os.pwrite(fd, (json.dumps(mine) + "\n").encode(), 0)
            _note_sharing(place, host, holder, [fd for _, fd in got])
        finally:
            os.close(ticket)
        fds = (*(fd for _, fd in got), host_fd)
        for fd in fds:
            os.set_inheritable(fd, True)
        return Lease(tuple(d for d, _ in got), fds, exclusive_host, time.monotonic() - began)
    except BaseException:
        for fd in held:
            os.close(fd)
        raise
    finally:
        waiter.close()


def _devices(
    place: Path, host: str, devices: Sequence[Device], count: int, waiter: _Waiter, held: list[int]
) -> list[tuple[Device, int]]:
    """Lock the first `count` that are free. Only the ticket's holder comes here, so those taken on the way
    can be kept while waiting for the rest."""
    files = {device: _open(_file(place, host, device)) for device in devices}
    got: dict[Device, int] = {}

    def enough() -> bool:
        for device, fd in files.items():
            if device not in got and len(got) < count and _try(fd, fcntl.LOCK_EX):
                got[device] = fd
        return len(got) == count

    try:
        waiter.until(enough, f"{count} of {len(devices)} devices")
    except BaseException:
        for fd in files.values():
            os.close(fd)
        raise
    for device, fd in files.items():
        if device in got:
            held.append(fd)
        else:
            os.close(fd)
    return [(d, fd) for d, fd in files.items() if d in got]


def _note_sharing(place: Path, host: str, holder: str, own: Iterable[int]) -> None:
    """Write into both sides' lock files that two leases are held at once: the later one does it for both."""
    mine = {os.fstat(fd).st_ino for fd in own}
    shared = False
    for path in sorted(place.glob(f"{host}.*.device")):
        fd = _open(path)
        try:
            if os.fstat(fd).st_ino not in mine and not _try(fd, fcntl.LOCK_EX):
                _append(fd, {"shared": holder or "another lease"})
                shared = True
        finally:
            os.close(fd)
    if shared:
        for fd in own:
            _append(fd, {"shared": "others held leases before"})


class _Waiter:
    """Waits until a lock can be had: asleep until somebody closes a lock file, or for LOOK_AGAIN_S."""

    def __init__(self, place: Path, host: str, deadline: float | None) -> None:
        self._place, self._host, self._deadline = place, host, deadline
        self._fd: int | None = None

    def until(self, attempt: Callable[[], bool], what: str) -> None:
        while not attempt():
            if self._fd is None:
                # Watch first, then try once more: a lock freed in between would go unseen.
                self._fd = _watch(self._place)
                if attempt():
                    return
            left = LOOK_AGAIN_S
            if self._deadline is not None:
                left = min(left, self._deadline - time.monotonic())
                if left <= 0:
                    raise LeaseTimeout(
                        f"no lease of {what} by the deadline; leases are held by "
                        f"{_holders(self._place, self._host)}: wait for them, or end them"
                    )
            if self._fd < 0:
                time.sleep(left)
            elif select.select([self._fd], [], [], left)[0]:
                os.read(self._fd, 65536)

    def close(self) -> None:
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)


def _watch(place: Path) -> int:
    """An inotify descriptor that tells of every closed file in the directory, or -1 if there is no inotify
    to be had (a limit of the user's, an odd kernel)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(place), _IN_CLOSE) < 0:
        os.close(fd)
        return -1
    return fd


def _file(place: Path, host: str, device: Device) -> Path:
    # A MIG instance's older names hold slashes.
    return place / f"{host}.{device.uuid.replace('/', '_')}.device"


def _open(path: Path) -> int:
    """A lock file, made if missing, writable for all users of the host.

    Opened without O_CREAT first: in a sticky directory the kernel refuses O_CREAT on a file that another
    user made (fs.protected_regular).
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        os.fchmod(fd, 0o666)
        return fd


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


def _append(fd: int, note: dict[str, str]) -> None:
    os.pwrite(fd, (json.dumps(note) + "\n").encode(), os.fstat(fd).st_size)


def _notes(fd: int) -> list[dict[str, object]]:
    text = os.pread(fd, os.fstat(fd).st_size, 0).decode()
    return [json.loads(line) for line in text.splitlines()]


def _holders(place: Path, host: str) -> str:
    found = []
    for path in sorted(place.glob(f"{host}.*.device")):
        fd = _open(path)
        try:
            note = next(iter(_notes(fd)), None)
            if note and not _try(fd, fcntl.LOCK_SH):
                found.append(f"{note.get('holder') or 'a trial'} (process {note.get('pid')})")
        finally:
            os.close(fd)
    return ", ".join(dict.fromkeys(found)) or "nobody now"
