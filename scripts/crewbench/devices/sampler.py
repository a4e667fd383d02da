"""The sampler: a process of its own that writes gpu.csv while a trial runs.

    python -m crewbench.devices.sampler     (started by `Sampler`, which tells it what to do)

It sleeps until each sample is due, on absolute deadlines, so it neither spins nor drifts; what it could not
take in time is counted. It imports neither torch nor pandas. When a GPU or the disk fails, samples are
lost and the trial is not.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from crewbench.devices import procfs
from crewbench.devices.budget import Ledger
from crewbench.devices.companion import Companion, CompanionError, Post
from crewbench.devices.inventory import Device
from crewbench.records import CsvWriter, GpuRow, Identity

START_S = 60.0
STOP_S = 30.0

MISSED_SHARE = 0.1
"""Of the samples that were due: from here on peaks and means are of another trial than the one that ran."""


class SamplerError(RuntimeError):
    """The sampler could not start. The text says why."""


class Sampler:
    """The trial's side of its sampler.

    `path` is gpu.csv; `hz` samples a second; `zero_s` the trial's zero on CLOCK_MONOTONIC; `ledger` the
    slots' accounts (needed for slots, whose memory and processes it knows); `ballast_mib` by device UUID is
    taken off what counts as used.
    """

    def __init__(
        self,
        path: Path | str,
        identity: Identity,
        devices: Sequence[Device],
        hz: float,
        zero_s: float,
        ledger: Path | str | None = None,
        ballast_mib: Mapping[str, float] | None = None,
    ) -> None:
        self._companion = Companion(
            "crewbench.devices.sampler",
            {
                "path": str(path),
                "identity": asdict(identity),
                "devices": [asdict(d) for d in devices],
                "hz": hz,
                "zero_s": zero_s,
                "ledger": None if ledger is None else str(ledger),
                "ballast_mib": dict(ballast_mib or {}),
            },
        )

    @property
    def pid(self) -> int | None:
        return self._companion.pid

    def start(self) -> None:
        """Returns once the first sample is written. SamplerError if that fails."""
        self._companion.start()
        try:
            self._companion.ready(START_S)
        except CompanionError as error:
            raise SamplerError(str(error)) from None

    def stop(self, own: Iterable[int] = ()) -> dict[str, Any]:
        """Take a last sample, close the file and say how it went. Never raises for a sampler that failed.

        Returns `samples` taken (None if it is gone with the count), `late` ones and, of these, those that
        were `missed` altogether, `errors` (how many readings or writes failed) and their `messages`; by
        device UUID and pid, `process_peak_mib`, `foreign` (of other users' processes: not started by this
        trial and not in `own`) and `unresolved` (NVML names a pid that this process cannot see, as in a
        container): what each held at most, None if not known; by device UUID, `throttle`: of how many
        `samples` the reasons were known, and in how many each held.
        """
        try:
            result = self._companion.stop(STOP_S)
        except CompanionError as error:
            result = {"samples": None, "late": None, "missed": None, "errors": 1, "messages": [str(error)]}
        known = set(own)
        for key in ("process_peak_mib", "foreign", "unresolved"):
            result[key] = {
                uuid: {int(pid): mib for pid, mib in held.items() if key[0] == "p" or int(pid) not in known}
                for uuid, held in result.get(key, {}).items()
            }
        for key in ("foreign", "unresolved"):
            result[key] = {uuid: held for uuid, held in result[key].items() if held}
        result.setdefault("throttle", {})
        return result


def taints(sampled: Mapping[str, Any]) -> list[str]:
    """What a sampler's result (`Sampler.stop`) says against its trial, a sentence each: somebody else on a
    device, a throttled clock, samples that were lost."""
    from crewbench.devices.nvml import SLOWDOWNS

    found = [f"a process of somebody else was on {uuid}" for uuid in sampled["foreign"]]
    for uuid, seen in sampled["throttle"].items():
        slow = {name: count for name, count in seen["reasons"].items() if name in SLOWDOWNS}
        if slow:
            shares = (f"{name} in {100 * n / seen['samples']:.1f} %" for name, n in sorted(slow.items()))
            found.append(f"the clock of {uuid} was throttled: {', '.join(shares)} of the samples")
    taken, missed = sampled["samples"], sampled["missed"]
    if taken and missed > MISSED_SHARE * (taken + missed):
        found.append(f"the sampler missed {missed} of {taken + missed} samples: peaks and means may be off")
    if sampled["errors"]:
        said = f": {sampled['messages'][0]}" if sampled["messages"] else ""
        found.append(f"readings of the devices were lost{said}")
    return found


class Reader(Protocol):
    """Reads one device."""

    device: Device
    peaks: dict[int, float | None]

    def read(self, row: GpuRow) -> bool:
        """Fill in what can be read now; False if nothing could."""


class SlotReader:
    """A CPU slot: its processes' CPU time as a share of one core, and the simulated budget's accounts.

    The kernel brings a running process's clock up to date every few ms only, so that a share over less than
    `least_s` would be noise: it is left out, and counted in the next.
    """

    def __init__(self, device: Device, accounts: Accounts, least_s: float) -> None:
        self.device = device
        self._accounts = accounts
        self._least_s = least_s
        self._cpu_s: dict[int, float] = {}
        self._at_s: float | None = None

    @property
    def peaks(self) -> dict[int, float | None]:
        return dict(self._accounts.ledger.peaks().get(self.device.uuid, {}))

    def read(self, row: GpuRow) -> bool:
        held = self._accounts.usage.get(self.device.uuid, {})
        now_s, cpu_s = time.monotonic(), _cpu_seconds(held)
        if self._at_s is not None and now_s - self._at_s >= self._least_s:
            spent = sum(s - self._cpu_s[pid] for pid, s in cpu_s.items() if pid in self._cpu_s)
            row.util_pct = 100 * spent / (now_s - self._at_s)
        if self._at_s is None or row.util_pct is not None:
            self._cpu_s, self._at_s = cpu_s, now_s
        row.used_mib = sum(held.values())
        row.free_mib = self.device.memory_mib - row.used_mib
        return True


class Accounts:
    """The ledger, read once for each sample of all slots."""

    def __init__(self, path: str) -> None:
        self.ledger = Ledger(path)
        self.usage: dict[str, dict[int, float]] = {}

    def look(self) -> None:
        self.usage = self.ledger.usage()


class GpuReader:
    """A GPU through NVML. Keeps what each process held at most, and counts why the clock was throttled."""

    def __init__(self, device: Device, ballast_mib: float, trouble: Any) -> None:
        from crewbench.devices.nvml import Card

        self.device = device
        self.peaks: dict[int, float | None] = {}
        self.reasons: Counter[str] = Counter()
        self.reasons_known = 0
        self._card = Card(device.uuid, trouble)
        self._ballast_mib = ballast_mib

    def read(self, row: GpuRow) -> bool:
        card = self._card
        memory, utilisation = card.memory(), card.utilisation()
        row.energy_j = card.energy_j()
        row.power_w = card.power_w()
        if memory is not None:
            row.used_mib, row.free_mib = max(memory[0] - self._ballast_mib, 0.0), memory[1]
            row.ballast_mib = self._ballast_mib
        if utilisation is not None:
            row.util_pct, row.memory_util_pct = utilisation
        row.temperature_c = card.temperature_c()
        row.sm_clock_mhz = card.sm_clock_mhz()
        reasons = card.throttle_reasons()
        if reasons is not None:
            row.throttle_reasons = "|".join(reasons)
            self.reasons.update(reasons)
            self.reasons_known += 1
        for pid, mib in card.processes().items():
            before = self.peaks.setdefault(pid, mib)
            if mib is not None and (before is None or mib > before):
                self.peaks[pid] = mib
        return any(v is not None for v in (memory, utilisation, row.energy_j, row.power_w))


class Sampling:
    """All that the sampler's process does: samples into a file, and what it learned on the way."""

    def __init__(self, spec: Mapping[str, Any], trial: int) -> None:
        from crewbench.devices.nvml import Trouble

        self.trouble = Trouble()
        self._zero_s = spec["zero_s"]
        self._trial = trial
        self._ours: dict[int, bool | None] = {}
        self._last: dict[str, tuple[float, float]] = {}
        self.samples = 0
        self._accounts = Accounts(spec["ledger"]) if spec["ledger"] else None
        devices = [Device(**d) for d in spec["devices"]]
        self._readers: list[Reader] = [self._reader(d, spec) for d in devices]
        self._path = spec["path"]
        self._whole = 0
        self._writer: CsvWriter | None = CsvWriter(Path(self._path), GpuRow, Identity(**spec["identity"]))

    def _reader(self, device: Device, spec: Mapping[str, Any]) -> Reader:
        if device.kind == "gpu":
            return GpuReader(device, spec["ballast_mib"].get(device.uuid, 0.0), self.trouble)
        if self._accounts is None:
            raise ValueError(f"{device.uuid} is a CPU slot: its sampler needs the ledger")
        return SlotReader(device, self._accounts, least_s=0.5 / spec["hz"])

    @property
    def writing(self) -> bool:
        return self._writer is not None

    def sample(self) -> None:
        """One row per device; one that cannot be read at all has none."""
        if self._accounts is not None:
            self._accounts.look()
        for reader in self._readers:
            at_s = time.monotonic() - self._zero_s
            row = GpuRow(at_s, reader.device.uuid, reader.device.index)
            if not reader.read(row):
                continue
            if row.used_mib is not None:
                before = self._last.get(reader.device.uuid)
                if before is not None:
                    row.memory_rate_mib_s = (row.used_mib - before[1]) / (at_s - before[0])
                self._last[reader.device.uuid] = at_s, row.used_mib
            if self._writer is not None:
                self._writer.write(row)
            if reader.device.kind == "gpu":
                self._recognise(reader.peaks)
        self._flush()
        self.samples += 1

    def _recognise(self, pids: Iterable[int]) -> None:
        """Learn whose each new process is while it lives. None: it cannot be seen from here."""
        for pid in pids:
            if self._ours.get(pid) is None:
                seen = procfs.started(pid) is not None
                self._ours[pid] = procfs.descends_from(pid, self._trial) if seen else None

    def _flush(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.flush()
            self._whole = os.stat(self._path).st_size
        except OSError as error:
            self._give_up_writing(error)

    def _give_up_writing(self, error: OSError) -> None:
        """Keep the whole rows; no half one may stay, or the file could not be read."""
        self.trouble.note(f"{self._path}: {error}; the samples after it are lost")
        self._writer = None
        try:
            os.truncate(self._path, self._whole)
        except OSError as again:
            self.trouble.note(f"{self._path}: {again}")

    def close(self) -> dict[str, Any]:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up_writing(error)
        peaks = {r.device.uuid: r.peaks for r in self._readers}
        gpus = {r.device.uuid for r in self._readers if r.device.kind == "gpu"}

        def of(whose: bool | None) -> dict[str, dict[int, float | None]]:
            return {u: {p: m for p, m in peaks[u].items() if self._ours.get(p) is whose} for u in gpus}

        return {
            "samples": self.samples,
            "errors": self.trouble.count,
            "messages": self.trouble.messages,
            "process_peak_mib": peaks,
            "throttle": {
                r.device.uuid: {"samples": r.reasons_known, "reasons": dict(r.reasons)}
                for r in self._readers
                if isinstance(r, GpuReader)
            },
            "foreign": of(False),
            "unresolved": of(None),
        }


def _cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds that each process has used so far, to the nanosecond; those that are gone are left out.

    The clock of another process: clock_getcpuclockid(3), whose number Linux makes from the pid like this.
    """
    found = {}
    for pid in pids:
        try:
            found[pid] = time.clock_gettime((~pid << 3) | 2)
        except OSError:
            pass
    return found


def main() -> None:
    post = Post()
    try:
        sampling = Sampling(post.spec, post.parent)
        sampling.sample()
    except Exception as error:
        post.say({"error": f"{type(error).__name__}: {error}"})
        return
    if not sampling.writing:
        post.say({"error": "; ".join(sampling.trouble.messages)})
        return
    post.say({"ready": True})
    period_s = 1 / post.spec["hz"]
    began_s, due, late, missed = time.monotonic(), 0, 0, 0
    while True:
        due += 1
        if post.wait(began_s + due * period_s):
            break
        behind_s = time.monotonic() - (began_s + due * period_s)
        if behind_s > period_s / 2:
            skipped = int(behind_s / period_s)
            late += 1 + skipped
            missed += skipped
            due += skipped
        sampling.sample()
    sampling.sample()
    post.say({**sampling.close(), "late": late, "missed": missed})


if __name__ == "__main__":
    main()
