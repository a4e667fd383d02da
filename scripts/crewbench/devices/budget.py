"""Running out of memory, as one typed error for GPUs and CPU slots, and the slots' simulated budget.

A GPU refuses by itself: `OutOfMemory.from_cuda` reads what CUDA's error says. A CPU slot has no memory
of its own, so a Ledger keeps accounts of a simulated budget: it says no where a GPU of that size would.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crewbench.devices import procfs

PHASES = ("load", "prefill", "decode")
MIB = 2**20


class OutOfMemory(Exception):
    """A device had too little memory. Sizes in MiB; None where it was not said.

    `reserved_mib` is what the failing process itself held (PyTorch's reserved memory, or its charges on a
    slot), `holders` what every process held by pid, the failing one among them. `simulated`: a CPU slot's
    budget, not a real device.
    """

    def __init__(
        self,
        phase: str,
        *,
        device_uuid: str = "",
        requested_mib: float | None = None,
        free_mib: float | None = None,
        reserved_mib: float | None = None,
        holders: Mapping[int, float | None] | None = None,
        simulated: bool = False,
        message: str = "",
    ) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r} is none of {', '.join(PHASES)}")
        self.phase = phase
        self.device_uuid = device_uuid
        self.requested_mib = requested_mib
        self.free_mib = free_mib
        self.reserved_mib = reserved_mib
        self.holders = dict(holders or {})
        self.simulated = simulated
        self.message = message or self._sentence()
        super().__init__(self.message)

    def _sentence(self) -> str:
        memory = "simulated memory" if self.simulated else "memory"
        where = f" on {self.device_uuid}" if self.device_uuid else ""
        wanted = _mib(self.requested_mib)
        return f"out of {memory}{where} in {self.phase}: asked for {wanted}, {_mib(self.free_mib)} free"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, JSON-ready: what `from_dict` takes back."""
        return {
            "phase": self.phase,
            "device_uuid": self.device_uuid,
            "requested_mib": self.requested_mib,
            "free_mib": self.free_mib,
            "reserved_mib": self.reserved_mib,
            "holders": {str(pid): mib for pid, mib in self.holders.items()},
            "simulated": self.simulated,
            "message": self.message,
        }

    def among(self, device_uuids: Sequence[str]) -> OutOfMemory:
        """The same with its device's UUID filled in: one of those that the failing process was given.

        CUDA says "GPU 1", its place among what the process sees; one device alone needs no telling.
        """
        if self.device_uuid:
            return self
        found = _ORDINAL.search(self.message)
        place = int(found["n"]) if found else 0 if len(device_uuids) == 1 else len(device_uuids)
        uuid = device_uuids[place] if place < len(device_uuids) else ""
        return OutOfMemory.from_dict({**self.to_dict(), "device_uuid": uuid})

    def others_mib(self, pid: int, aside: Collection[int] = ()) -> float | None:
        """What all processes but the failing one (`pid`) and those set aside held together, of what is known.

        None where nobody said who held what, or where a GPU's list does not name the failing process: its
        pids are then of another namespace, and the failing one cannot be told from the others.
        """
        if not self.simulated and pid not in self.holders:
            return None
        return sum(m for p, m in self.holders.items() if p != pid and p not in aside and m is not None)

    def held_by(self, names: Mapping[int, str]) -> str:
        """Who held what in words, the largest first; a pid without a name is "process" and its number."""
        ordered = sorted(self.holders.items(), key=lambda item: (-(item[1] or 0.0), item[0]))
        return "; ".join(
            f"{names.get(pid, f'process {pid}')}: {'unknown' if mib is None else f'{mib:.1f} MiB'}"
            for pid, mib in ordered
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OutOfMemory:
        fields = dict(data)
        fields["holders"] = {int(pid): mib for pid, mib in fields["holders"].items()}
        return cls(fields.pop("phase"), **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return OutOfMemory.from_dict, (self.to_dict(),)

    @classmethod
    def from_cuda(
        cls, error: BaseException, phase: str, device_uuid: str = "", pid: int | None = None
    ) -> OutOfMemory:
        """What a CUDA error says, as data. `pid` is the process that met it (default: this one).

        The wording is that of PyTorch's c10/cuda/CUDACachingAllocator.cpp; numbers that a text does not
        hold stay None, so a driver's bare "out of memory" gives a record too.
        """
        text = str(error)
        allocated = _size(_ALLOCATED.search(text))
        unused = _size(_UNUSED.search(text))
        holders: dict[int, float | None] = {}
        for found in _HOLDER.finditer(text):
            holder = int(found["pid"]) if found["pid"] else (os.getpid() if pid is None else pid)
            holders[holder] = _size(found)
        return cls(
            phase,
            device_uuid=device_uuid,
            requested_mib=_size(_REQUESTED.search(text)),
            free_mib=_size(_FREE.search(text)),
            reserved_mib=None if allocated is None or unused is None else allocated + unused,
            holders=holders,
            message=text,
        )


def is_cuda_oom(error: BaseException) -> bool:
    """Whether this error means that a GPU had too little memory.

    PyTorch's allocator raises OutOfMemoryError; memory that the driver or cuBLAS takes by themselves
    (contexts, workspaces, graphs) fails as a plain RuntimeError that only its text tells.
    """
    if any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and bool(_BARE.search(str(error)))


_AMOUNT = r"(?P<n>[0-9.]+) (?P<unit>bytes|KiB|MiB|GiB)"
_REQUESTED = re.compile(rf"Tried to allocate {_AMOUNT}")
_FREE = re.compile(rf"of which {_AMOUNT} is free")
_HOLDER = re.compile(rf"(?:Process (?P<pid>[0-9]+)|this process) has {_AMOUNT} memory in use")
_ORDINAL = re.compile(r"GPU (?P<n>[0-9]+) has a total capacity")
_ALLOCATED = re.compile(rf"Of the allocated memory {_AMOUNT} is allocated by PyTorch")
_UNUSED = re.compile(rf"{_AMOUNT} is reserved by PyTorch but unallocated")
_BARE = re.compile(r"CUDA (driver )?error: (device )?out of memory|CU(BLAS|DNN|SPARSE)_STATUS_ALLOC_FAILED")
_UNITS = {"bytes": 1 / MIB, "KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
# NVML reports a share it may not know as the largest 64-bit number.
_UNKNOWN_FROM_MIB = 2**63 / MIB


def _size(found: re.Match[str] | None) -> float | None:
    if found is None:
        return None
    mib = float(found["n"]) * _UNITS[found["unit"]]
    return mib if mib < _UNKNOWN_FROM_MIB else None


def _mib(value: float | None) -> str:
    return "an unknown amount" if value is None else f"{value:.1f} MiB"


@dataclass(frozen=True, slots=True)
class Charge:
    """What one process holds of one device for one purpose. `start` tells the process from a later one
    with the same pid."""

    device_uuid: str
    pid: int
    start: int
    what: str
    mib: float


class Ledger:
    """The accounts of a trial's CPU slots, in one small file that its processes share.

    Writers take turns by flock and replace the file whole, so readers need no lock and a writer that is
    killed leaves the accounts as they were. Charges of processes that are gone count for nothing, as a
    GPU frees what its dead processes held.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def charge(
        self,
        device_uuid: str,
        pid: int,
        what: str,
        mib: float,
        budget_mib: float,
        phase: str = "load",
    ) -> None:
        """Add `mib` (negative gives back) to what `pid` holds of the device for `what`.

        0 MiB makes the process known to the sampler. Raises OutOfMemory, and charges nothing, when all
        live processes would hold more than `budget_mib`. ProcessLookupError if `pid` is gone.
        """
        start = procfs.started(pid)
        if start is None:
            raise ProcessLookupError(f"process {pid} cannot be charged: it is gone")
        with self._turn():
            charges, peaks = self._live()
            used = sum(c.mib for c in charges if c.device_uuid == device_uuid)
            # A tenth of a KiB of slack: sums of many charges and refunds must not refuse an exact fit.
            if mib > 0 and used + mib > budget_mib + 1e-4:
                held = _by_pid(charges, device_uuid)
                raise OutOfMemory(
                    phase,
                    device_uuid=device_uuid,
                    requested_mib=mib,
                    free_mib=budget_mib - used,
                    reserved_mib=held.get(pid, 0.0),
                    holders=held,
                    simulated=True,
                    message=_refusal(device_uuid, phase, what, mib, budget_mib, held),
                )
            kept = [c for c in charges if (c.device_uuid, c.pid, c.what) != (device_uuid, pid, what)]
            before = sum(c.mib for c in charges) - sum(c.mib for c in kept)
            kept.append(Charge(device_uuid, pid, start, what, max(before + mib, 0.0)))
            own = sum(c.mib for c in kept if (c.device_uuid, c.pid) == (device_uuid, pid))
            key = f"{device_uuid} {pid} {start}"
            peaks[key] = max(peaks.get(key, 0.0), own)
            self._write(kept, peaks)

    def release(self, pid: int, what: str | None = None) -> None:
        """Drop all that `pid` holds, or only what it holds for `what`."""
        with self._turn():
            charges, peaks = self._live()
            self._write([c for c in charges if c.pid != pid or what not in (None, c.what)], peaks)

    def usage(self) -> dict[str, dict[int, float]]:
        """MiB by device and pid, live processes only. Takes no lock."""
        charges, _ = self._live()
        return {uuid: _by_pid(charges, uuid) for uuid in sorted({c.device_uuid for c in charges})}

    def peaks(self) -> dict[str, dict[int, float]]:
        """The most that each process ever held of each device, in MiB by device and pid, the dead ones
        among them."""
        found: dict[str, dict[int, float]] = {}
        for key, mib in self._read()[1].items():
            uuid, pid, _ = key.rsplit(" ", 2)
            found.setdefault(uuid, {})[int(pid)] = mib
        return found

    def _live(self) -> tuple[list[Charge], dict[str, float]]:
        charges, peaks = self._read()
        alive = {key: procfs.alive(*key) for key in {(c.pid, c.start) for c in charges}}
        return [c for c in charges if alive[c.pid, c.start]], peaks

    def _read(self) -> tuple[list[Charge], dict[str, float]]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return [], {}
        return [Charge(*item) for item in data["charges"]], data["peaks_mib"]

    def _write(self, charges: list[Charge], peaks: dict[str, float]) -> None:
        rows = [[c.device_uuid, c.pid, c.start, c.what, c.mib] for c in charges]
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps({"charges": rows, "peaks_mib": peaks}), encoding="utf-8")
        os.replace(new, self.path)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fd = os.open(
            self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _by_pid(charges: list[Charge], device_uuid: str) -> dict[int, float]:
    held: dict[int, float] = {}
    for c in charges:
        if c.device_uuid == device_uuid:
            held[c.pid] = held.get(c.pid, 0.0) + c.mib
    return held


def _refusal(
    device_uuid: str, phase: str, what: str, mib: float, budget_mib: float, held: Mapping[int, float]
) -> str:
    others = ", ".join(f"process {pid} holds {n:.1f} MiB" for pid, n in sorted(held.items()) if n) or "nobody"
    free = budget_mib - sum(held.values())
    return (
        f"simulated budget: {what} needs {mib:.1f} MiB in {phase}, {device_uuid} has {free:.1f} of "
        f"{budget_mib:.1f} MiB free ({others})"
    )
