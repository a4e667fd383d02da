"""The few calls of the CUDA driver that processes of our own need, through ctypes: importing torch takes ten
seconds. A process sees the one GPU that CUDA_VISIBLE_DEVICES leaves it.
"""

from __future__ import annotations

import ctypes
from typing import Any
from uuid import UUID

from crewbench.devices.inventory import DeviceError

PAGE = 2 * 2**20
"""The driver hands out device memory in pages of this size."""


class Cuda:
    """The first visible device, with its primary context. DeviceError with the driver's own words."""

    OUT_OF_MEMORY = 2

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceError(f"no CUDA driver: {error}") from None
        self._call("cuInit", ctypes.c_uint(0))
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        number = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", number, device)
        self.uuid = str(UUID(bytes=bytes(number)))
        """The device's, without the "GPU-" or "MIG-" that NVML puts before it."""
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def free(self) -> int:
        """Bytes free on the card."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def take(self, length: int) -> int | None:
        """Allocate so many bytes for as long as this process lives and return their address; None if there
        are none in one piece."""
        pointer = ctypes.c_uint64()
        code = self._lib.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(length))
        if code not in (0, self.OUT_OF_MEMORY):
            raise DeviceError(f"cuMemAlloc: {self._words(code)}")
        return pointer.value if code == 0 else None

    def copy_s(self, target: int, source: int, length: int) -> float:
        """Copy so many bytes from one address to another and return the seconds it took the device, by its
        own events (0.5 microseconds resolution: CUDA driver API, cuEventElapsedTime)."""
        began, ended = self._event(), self._event()
        took_ms = ctypes.c_float()
        try:
            self._call("cuEventRecord", began, None)
            self._call(
                "cuMemcpyDtoDAsync_v2",
                ctypes.c_uint64(target),
                ctypes.c_uint64(source),
                ctypes.c_size_t(length),
                None,
            )
            self._call("cuEventRecord", ended, None)
            self._call("cuEventSynchronize", ended)
            self._call("cuEventElapsedTime", ctypes.byref(took_ms), began, ended)
        finally:
            for event in (began, ended):
                self._call("cuEventDestroy_v2", event)
        return took_ms.value / 1000

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        return event

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            raise DeviceError(f"{name}: {self._words(code)}")

    def _words(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._lib.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
        return (text.value or b"unknown error").decode() + f" ({code})"
