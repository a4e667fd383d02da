"""The bandwidth probe: its numbers by hand, and its process against a small driver in C."""

import os
import subprocess

import pytest

from crewbench.devices import bandwidth
from crewbench.devices.inventory import Device, slots

GIB = 2**30
UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"

# The calls of the CUDA driver that the probe makes, on a card that is host memory. Its clock moves with each
# copy: the first takes 0.5 ms, each further one 1 µs more, so that rates can be told beforehand.
DRIVER = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
static double now_ms, per_copy_ms = 0.5;
static size_t card(void) { return (size_t)atol(getenv("CARD_MIB")) << 20; }
int cuInit(unsigned flags) { return getenv("BROKEN") ? 999 : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &now_ms; return 0; }
int cuCtxSetCurrent(void *context) { return context == &now_ms ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = card(); return 0; }
int cuMemAlloc_v2(uint64_t *at, size_t length) {
    if (length > (size_t)atol(getenv("PIECE_MIB")) << 20) return 2;
    *at = (uint64_t)(uintptr_t)malloc(length);
    return *at ? 0 : 2;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t length, void *stream) {
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, 4096);
    memcpy((void *)(uintptr_t)(to + length - 4096), (void *)(uintptr_t)(from + length - 4096), 4096);
    now_ms += per_copy_ms;
    per_copy_ms += 0.001;
    return 0;
}
int cuEventCreate(void **event, unsigned flags) { *event = malloc(sizeof(double)); return 0; }
int cuEventRecord(void *event, void *stream) { *(double *)event = now_ms; return stream ? 400 : 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime(float *ms, void *began, void *ended) {
    *ms = (float)(*(double *)ended - *(double *)began);
    return 0;
}
int cuEventDestroy_v2(void *event) { free(event); return 0; }
int cuGetErrorString(int code, const char **text) { *text = "unknown error"; return 0; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    place = tmp_path_factory.mktemp("driver")
    (place / "cuda.c").write_text(DRIVER)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", place / "libcuda.so.1", place / "cuda.c"], check=True
    )
    return place


@pytest.fixture
def card(driver, monkeypatch):
    """Makes the machine one with a card of so many MiB, in pieces of at most so many."""

    def make(mib: int, piece_mib: int | None = None) -> Device:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
        monkeypatch.setenv("CARD_MIB", str(mib))
        monkeypatch.setenv("PIECE_MIB", str(piece_mib or mib))
        return Device(UUID, 0, "gpu", "a card", float(mib))

    return make


def test_a_copy_counts_what_it_reads_and_what_it_writes():
    # 1 GiB read and 1 GiB written in 0.5, 0.4 and 1 ms: 2147483648 bytes over the time.
    said = bandwidth.summary(GIB, [0.0005, 0.0004, 0.001])
    assert said["median"] == pytest.approx(4294.967296)
    assert said["max"] == pytest.approx(5368.70912)
    assert said["min"] == pytest.approx(2147.483648)
    assert (said["copies"], said["copy_mib"], said["why"]) == (3, 1024, "")


@pytest.mark.needs("gcc")
def test_the_probe_says_how_fast_the_card_copies(card):
    found = bandwidth.measured([card(4096)])[UUID]
    assert (found["copies"], found["copy_mib"], found["why"]) == (bandwidth.COPIES, 1024, "")
    assert 2 * GIB / 0.7e-3 / 1e9 < found["min"] < found["median"] < found["max"] < 2 * GIB / 0.5e-3 / 1e9


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(("card_mib", "piece_mib", "copy_mib"), [(1200, None, 600), (8192, 1100, 512)])
def test_where_less_is_free_less_is_copied(card, card_mib, piece_mib, copy_mib):
    assert bandwidth.measured([card(card_mib, piece_mib)])[UUID]["copy_mib"] == copy_mib


@pytest.mark.needs("gcc")
def test_too_little_for_a_copy_that_says_anything_is_a_reason(card):
    found = bandwidth.measured([card(300)])[UUID]
    assert (found["min"], found["median"], found["max"], found["copies"]) == (None, None, None, 0)
    assert "300 MiB free are too few" in found["why"]


@pytest.mark.needs("gcc")
def test_the_wrong_card_and_a_broken_driver_are_reasons(card, monkeypatch):
    right = card(4096)
    other = Device("GPU-ffff", 1, "gpu", "another", 4096.0)
    found = bandwidth.measured([right, other])
    assert found[UUID]["median"] > 0
    assert "CUDA shows device" in found["GPU-ffff"]["why"]
    monkeypatch.setenv("BROKEN", "1")
    assert "unknown error (999)" in bandwidth.measured([right])[UUID]["why"]


def test_without_a_driver_or_on_slots_there_is_a_reason_and_no_error(tmp_path, monkeypatch):
    (tmp_path / "libcuda.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert "no CUDA driver" in bandwidth.measured([Device(UUID, 0, "gpu", "gone", 1.0)])[UUID]["why"]
    assert bandwidth.measured(slots(1, 56))["slot-0"]["why"] == "a CPU slot has no memory of its own"


@pytest.mark.needs("gcc")
def test_no_process_of_the_probe_is_left(card):
    before = set(os.listdir("/proc"))
    bandwidth.measured([card(4096)])
    mine = [p for p in set(os.listdir("/proc")) - before if p.isdigit() and _is_child(p)]
    assert mine == []


def _is_child(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[1] == str(os.getpid())
    except FileNotFoundError:
        return False
