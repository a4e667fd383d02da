"""How fast a GPU's memory is: a short process that copies within it, for the limit that decoding has.

    python -m crewbench.devices.bandwidth     (started by `measured`, which tells it what to do)

A copy of n bytes reads n and writes n, and both count: 2n / seconds, in GB/s (10^9 bytes per second), as the
STREAM benchmark counts its copy (McCalpin 1995). Times are the device's own events.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from crewbench.devices.companion import Companion, CompanionError, Post
from crewbench.devices.cuda import PAGE, Cuda
from crewbench.devices.inventory import Device

MIB = 2**20
COPY = 1024 * MIB
LEAST = 256 * MIB
"""What a copy must at least have: smaller ones would measure a cache (126 MB on a large card of 2025)."""
COPIES = 15
WARM_UP_S = 0.05
"""Copying before what counts, until the memory's clock is up."""
ANSWER_S = 30.0


class TooLittleFree(RuntimeError):
    """The card has no room for a copy that says anything."""


def measured(devices: Sequence[Device]) -> dict[str, dict[str, Any]]:
    """Each device's copy bandwidth by its UUID: `min`, `median` and `max` of `copies` copies of `copy_mib`,
    in GB/s. Where there is none they are None and `why` says why; nothing is raised for it.

    All devices are measured side by side: each has a memory of its own.
    """
    found = {d.uuid: _missing("a CPU slot has no memory of its own") for d in devices if d.kind != "gpu"}
    probes = {
        d.uuid: Companion(
            "crewbench.devices.bandwidth",
            {"uuid": d.uuid},
            {"CUDA_VISIBLE_DEVICES": d.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
        for d in devices
        if d.kind == "gpu"
    }
    with ExitStack() as started:
        for uuid, probe in probes.items():
            started.callback(probe.kill)
            try:
                probe.start()
            except OSError as error:
                found[uuid] = _missing(f"no process for it: {error}")
        for uuid, probe in probes.items():
            if uuid in found:
                continue
            try:
                found[uuid] = probe.ready(ANSWER_S)
            except (CompanionError, ValueError) as error:
                found[uuid] = _missing(str(error))
    return found


def _missing(why: str) -> dict[str, Any]:
    return {"min": None, "median": None, "max": None, "copies": 0, "copy_mib": 0, "why": why}


def summary(length: int, took_s: Sequence[float]) -> dict[str, Any]:
    """What copies of `length` bytes that took so many seconds each say: 2 · length / seconds, in GB/s."""
    rates = [2 * length / seconds / 1e9 for seconds in took_s]
    return {
        "min": min(rates),
        "median": statistics.median(rates),
        "max": max(rates),
        "copies": len(rates),
        "copy_mib": length // MIB,
        "why": "",
    }


def copies(cuda: Cuda) -> dict[str, Any]:
    """Copy from one half of a piece of memory to the other. TooLittleFree, or the driver's DeviceError."""
    free = cuda.free()
    length = min(COPY, free // 2 // PAGE * PAGE)
    source = None
    while length >= LEAST and source is None:
        source = cuda.take(2 * length)
        if source is None:
            length = length // 2 // PAGE * PAGE
    if source is None:
        raise TooLittleFree(f"{free // MIB} MiB free are too few for two pieces of {LEAST // MIB} MiB")
    warm_s = 0.0
    while warm_s < WARM_UP_S:
        warm_s += cuda.copy_s(source + length, source, length)
    return summary(length, [cuda.copy_s(source + length, source, length) for _ in range(COPIES)])


def main() -> None:
    post = Post()
    uuid = post.spec["uuid"]
    try:
        cuda = Cuda()
        if not uuid.endswith(cuda.uuid):
            post.say({"error": f"CUDA shows device {cuda.uuid}, wanted {uuid}"})
            return
        post.say(copies(cuda))
    except Exception as error:
        post.say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
