"""Which devices there are: GPUs by UUID through NVML, or CPU slots where there is no GPU.

Nothing here starts CUDA, so the caller may still fork and pin.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from crewbench.devices import allocation
from crewbench.devices.allocation import Allocation

MIB = 2**20


class DeviceError(RuntimeError):
    """The devices asked for cannot be had. The text names what is there and the remedy."""


class NoDriver(DeviceError):
    """NVML cannot be loaded or talks to no driver."""


class NoDevices(DeviceError):
    """A driver, but no GPU that this process may use."""


class TooFewDevices(DeviceError):
    """More devices asked for than there are."""


class TooLittleMemory(DeviceError):
    """The memory budget is larger than the device's memory."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU (or MIG instance) by its UUID, or a CPU slot.

    `index` is NVML's, in PCI bus order whatever CUDA_VISIBLE_DEVICES says; a MIG instance has its GPU's.
    `memory_mib` is the GPU's own memory, or the slot's simulated budget; `host` is set by a trial.
    """

    uuid: str
    index: int
    kind: Literal["gpu", "slot"]
    name: str
    memory_mib: float
    host: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVML shows it. `instances` are its MIG instances; in MIG mode the GPU itself takes no work."""

    device: Device
    mig_mode: bool = False
    instances: tuple[Device, ...] = ()


def resolve(kind: str) -> Literal["gpu", "slot"]:
    """A kind "gpu" or "slot" stays; "auto" is "gpu" where a GPU may be used, otherwise "slot"."""
    if kind == "gpu" or kind == "slot":
        return kind
    if kind != "auto":
        raise DeviceError(f"device kind {kind!r} is none of auto, gpu, slot")
    try:
        return "gpu" if list_devices("gpu") else "slot"
    except (NoDriver, NoDevices):
        return "slot"


def list_devices(kind: str, count: int | None = None, memory_mib: float | None = None) -> tuple[Device, ...]:
    """The usable devices of a kind ("auto" is resolved): all GPUs, of which there must be `count`, or `count`
    slots. Who leases some of them takes those that are free.

    GPUs come in the order of CUDA_VISIBLE_DEVICES, in PCI bus order where it is unset. `memory_mib` is each
    slot's simulated budget; for GPUs it is only checked to fit the card. Raises NoDriver, NoDevices,
    TooFewDevices, TooLittleMemory, DeviceError.
    """
    if count is not None and count < 1:
        raise DeviceError(f"{count} devices asked for: at least 1 is needed")
    if resolve(kind) == "slot":
        return slots(1 if count is None else count, memory_mib)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = select(_gpus(), visible)
    seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
    if not devices:
        raise NoDevices(f"no GPU may be used here{seen}: ask for devices.kind slots, or make a GPU visible")
    if count is not None and len(devices) < count:
        raise TooFewDevices(
            f"{_gpus_in_words(count)} asked for and {len(devices)} usable here{seen}: "
            f"ask for at most {len(devices)}, or run where there are more"
        )
    for device in devices:
        if memory_mib is not None and memory_mib > device.memory_mib:
            raise TooLittleMemory(
                f"a memory budget of {memory_mib:.0f} MiB is more than {device.name} {device.uuid} has "
                f"({device.memory_mib:.0f} MiB): lower the budget or leave it out"
            )
    return devices


def slots(count: int, memory_mib: float | None) -> tuple[Device, ...]:
    """CPU slots "slot-0" and on, each with a simulated memory budget."""
    if memory_mib is None or memory_mib <= 0:
        raise DeviceError(f"a CPU slot needs a memory budget above 0 MiB, not {memory_mib}")
    return tuple(Device(f"slot-{i}", i, "slot", "CPU slot", memory_mib) for i in range(count))


def usable(kind: str, here: int | None, wanted: int, memory_mib: float | None) -> tuple[Device, ...]:
    """What a trial that wants so many devices may lease them from: those of the allocation that was made for
    it, or else the first `here` of this host (None: all). Raises as list_devices does."""
    given = allocation.current()
    if given is None:
        return list_devices(kind, here, memory_mib)
    return allocated(given, kind, wanted, memory_mib)


def allocated(given: Allocation, kind: str, count: int, memory_mib: float | None) -> tuple[Device, ...]:
    """The devices of an allocation that was made for one trial, which wants `count` of them: all of them.

    A CPU slot takes a GPU's place here too: slot i is the node's GPU i, so that Slurm shares out slots as it
    does GPUs. Where a trial on slots asked Slurm for no GPU, it has slots of its own. TooFewDevices or
    DeviceError when Slurm gave another number than was asked for.
    """
    if given.devices is None:
        if kind == "slot":
            return slots(count, memory_mib)
        raise NoDevices(
            f"the trial's cell wants {_devices_in_words(count)} and Slurm job {given.job_id} holds no GPU of "
            f"node {given.node}: let the profile not change the trial's resource `gpu`"
        )
    if len(given.devices) != count:
        wrong = TooFewDevices if len(given.devices) < count else DeviceError
        raise wrong(
            f"the trial's cell wants {_devices_in_words(count)} and Slurm job {given.job_id} holds "
            f"{len(given.devices)} on node {given.node} (CUDA_VISIBLE_DEVICES={given.visible!r}): let the "
            "profile not change the trial's resource `gpu`, and not ask for GPUs in slurm_extra"
        )
    if kind == "slot":
        if not all(name.isdigit() for name in given.devices):
            raise DeviceError(
                f"Slurm job {given.job_id} names its GPUs by UUID (CUDA_VISIBLE_DEVICES={given.visible!r}), "
                "and a CPU slot takes the place of a number: let the profile ask for no GPU, or use kind gpu"
            )
        numbered = slots(max(map(int, given.devices)) + 1, memory_mib)
        return tuple(numbered[int(i)] for i in given.devices)
    return list_devices(kind, count, memory_mib)


def select(gpus: Sequence[Gpu], visible: str | None) -> tuple[Device, ...]:
    """Which of the host's GPUs CUDA would show under this CUDA_VISIBLE_DEVICES, in its order.

    None shows all; a GPU in MIG mode is replaced by its instances. Entries are indices in PCI bus order,
    UUIDs or unique starts of them; "-1" and Slurm's "NoDevFiles" end the list, as for CUDA. Where CUDA
    would silently stop at an entry that it does not know, this raises DeviceError.
    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if visible is None:
        return tuple(d for gpu in gpus for d in (gpu.instances if gpu.mig_mode else (gpu.device,)))
    chosen: list[Device] = []
    for entry in (e.strip() for e in visible.split(",")):
        if entry in ("", "-1", "NoDevFiles", "none", "void"):
            break
        device = _named(gpus, entry)
        if device in chosen:
            raise DeviceError(f"CUDA_VISIBLE_DEVICES={visible!r} names {device.uuid} twice")
        chosen.append(device)
    return tuple(chosen)


def _named(gpus: Sequence[Gpu], entry: str) -> Device:
    if entry.isdigit():
        found = [gpu for gpu in gpus if gpu.device.index == int(entry)]
    else:
        instances = [d for gpu in gpus for d in gpu.instances if d.uuid.startswith(entry)]
        if entry.startswith("MIG-") and len(instances) == 1:
            return instances[0]
        found = [gpu for gpu in gpus if gpu.device.uuid.startswith(entry)]
    if len(found) != 1:
        known = ", ".join(d.uuid for gpu in gpus for d in (gpu.device, *gpu.instances)) or "no GPU"
        what = "is no GPU of this host" if not found else "fits several GPUs"
        raise DeviceError(f"CUDA_VISIBLE_DEVICES names {entry!r}, which {what}: there are {known}")
    if found[0].mig_mode:
        raise DeviceError(
            f"GPU {found[0].device.uuid} is in MIG mode, so that only its instances take work: "
            f"name one of {', '.join(d.uuid for d in found[0].instances) or 'none (create one first)'}"
        )
    return found[0].device


def _devices_in_words(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _gpus_in_words(count: int) -> str:
    return "1 GPU is" if count == 1 else f"{count} GPUs are"


def _gpus() -> tuple[Gpu, ...]:
    """All GPUs of the host in PCI bus order. NoDriver, NoDevices."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoDriver(
            f"no NVIDIA driver answers here ({error}): ask for devices.kind slots, or run on a GPU machine"
        ) from None
    try:
        count = nvml.nvmlDeviceGetCount()
        if count == 0:
            raise NoDevices("the NVIDIA driver answers but shows no GPU: ask for devices.kind slots")
        # NVML counts in PCI bus order, as CUDA does under CUDA_DEVICE_ORDER=PCI_BUS_ID.
        return tuple(_gpu(nvml, i) for i in range(count))
    except nvml.NVMLError as error:
        raise DeviceError(f"NVML could not list the GPUs: {error}") from error
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    device = _device(nvml, handle, index)
    try:
        mig_mode = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        return Gpu(device)
    if not mig_mode:
        return Gpu(device)
    instances = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError_NotFound:
            continue
        instances.append(replace(_device(nvml, instance, index), name=f"{device.name} MIG {place}"))
    return Gpu(device, True, tuple(instances))


def _device(nvml: Any, handle: Any, index: int) -> Device:
    return Device(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        kind="gpu",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_mib=nvml.nvmlDeviceGetMemoryInfo(handle).total / MIB,
    )


def _text(value: Any) -> str:
    """NVML's names were bytes before nvidia-ml-py 11.5."""
    return value.decode() if isinstance(value, bytes) else str(value)
