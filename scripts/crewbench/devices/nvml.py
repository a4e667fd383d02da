"""Readings of a GPU through NVML, each on its own: what a card lacks is None, never zero.

Needs nvidia-ml-py (the module `pynvml`) and nothing else. Units: MiB, W, J, °C, MHz, %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pynvml as nvml

from crewbench.devices.inventory import DeviceError

MIB = 2**20

# What a card, a MIG instance, a driver or the user's rights do not offer: asked once, then left out.
_LACKING = (
    nvml.NVMLError_NotSupported,
    nvml.NVMLError_FunctionNotFound,
    nvml.NVMLError_NoPermission,
    nvml.NVMLError_InvalidArgument,
    nvml.NVMLError_NotFound,
    nvml.NVMLLibraryMismatchError,
)

THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""NVML's nvmlClocksEventReason and nvmlClocksThrottleReason bits (nvml.h)."""

SLOWDOWNS = frozenset(
    ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
)
"""The reasons that mean a card in trouble: too hot, or short of power from outside. The others are how a card
of its kind and settings always runs, the software power cap among them (docs/decisions.md)."""


@dataclass(slots=True)
class Trouble:
    """What went wrong while reading: how often, and each message once."""

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def note(self, message: str) -> None:
        self.count += 1
        if message not in self.messages and len(self.messages) < 20:
            self.messages.append(message)


class Card:
    """One GPU or MIG instance by UUID. Every method returns None where there is nothing to read."""

    def __init__(self, uuid: str, trouble: Trouble | None = None) -> None:
        self.uuid = uuid
        self.trouble = trouble if trouble is not None else Trouble()
        nvml.nvmlInit()
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._lacking: set[str] = set()
        self._first_mj: int | None = None

    def _read(self, name: str, ask: Callable[[Any], Any]) -> Any:
        if name in self._lacking:
            return None
        try:
            return ask(self._handle)
        except _LACKING:
            self._lacking.add(name)
        except nvml.NVMLError as error:
            self.trouble.note(f"{name} of {self.uuid}: {error}")
        return None

    def memory(self) -> tuple[float, float] | None:
        """MiB used (by programs, without the driver's own reserve where NVML tells them apart) and free."""
        info = self._read("memory", lambda h: nvml.nvmlDeviceGetMemoryInfo(h, version=nvml.nvmlMemory_v2))
        if info is None:
            info = self._read("memory (v1)", nvml.nvmlDeviceGetMemoryInfo)
        return None if info is None else (info.used / MIB, info.free / MIB)

    def utilisation(self) -> tuple[float, float] | None:
        """Percent of the last interval in which a kernel ran, and in which memory was read or written."""
        rates = self._read("utilisation", nvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else (float(rates.gpu), float(rates.memory))

    def power_w(self) -> float | None:
        """The instant power; on cards without it the driver's own average."""
        now = self._read("instant power", self._instant_power)
        mw = now if now is not None else self._read("power", nvml.nvmlDeviceGetPowerUsage)
        return None if mw is None else mw / 1000

    @staticmethod
    def _instant_power(handle: Any) -> int:
        (value,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if value.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(value.nvmlReturn)
        return value.value.uiVal

    def energy_j(self) -> float | None:
        """Joules since the first call, from the card's own counter."""
        mj = self._read("energy", nvml.nvmlDeviceGetTotalEnergyConsumption)
        if mj is None:
            return None
        if self._first_mj is None:
            self._first_mj = mj
        return (mj - self._first_mj) / 1000

    def temperature_c(self) -> float | None:
        return self._float(
            "temperature", lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU)
        )

    def sm_clock_mhz(self) -> float | None:
        return self._float("SM clock", lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM))

    def throttle_reasons(self) -> tuple[str, ...] | None:
        """The names of all reasons that hold."""
        bits = self._read("throttle reasons", nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return None if bits is None else tuple(n for bit, n in THROTTLE_REASONS.items() if bits & bit)

    def processes(self) -> dict[int, float | None]:
        """MiB by pid of the processes that compute on the card; None where NVML does not know."""
        found = self._read("processes", nvml.nvmlDeviceGetComputeRunningProcesses) or []
        return {p.pid: None if p.usedGpuMemory is None else p.usedGpuMemory / MIB for p in found}

    def _float(self, name: str, ask: Callable[[Any], Any]) -> float | None:
        value = self._read(name, ask)
        return None if value is None else float(value)


def free_mib(uuids: list[str]) -> dict[str, float]:
    """MiB free now, by UUID. DeviceError if a device cannot be read."""
    try:
        nvml.nvmlInit()
        try:
            handles = {uuid: nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
            return {uuid: nvml.nvmlDeviceGetMemoryInfo(h).free / MIB for uuid, h in handles.items()}
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise DeviceError(f"NVML cannot read the memory of {', '.join(uuids)}: {error}") from None


def wait_until_free(wanted_mib: Mapping[str, float], deadline_s: float, slack_mib: float = 64.0) -> bool:
    """Wait until each device has (nearly) so much memory free again; False if not within `deadline_s`.
    DeviceError if a device cannot be read.

    A dead process's memory is given back a moment after it is gone, and NVML has no event for that: this
    looks every 10 ms.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        free = free_mib(list(wanted_mib))
        if all(free[uuid] >= wanted - slack_mib for uuid, wanted in wanted_mib.items()):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
