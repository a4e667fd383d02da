"""Which devices a process may use, on machines with and without GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crewbench.devices import inventory
from crewbench.devices.inventory import Device, DeviceError, Gpu, list_devices, resolve, select


def gpu(index, uuid, **more):
    return Gpu(Device(uuid, index, "gpu", "NVIDIA H200", 143771.0), **more)


def mig(index, uuid):
    return Device(uuid, index, "gpu", "NVIDIA H200 MIG", 18000.0)


HOST = (
    gpu(0, "GPU-aa11"),
    gpu(1, "GPU-aa22"),
    gpu(2, "GPU-bb33", mig_mode=True, instances=(mig(2, "MIG-c1"), mig(2, "MIG-d2"))),
    gpu(3, "GPU-cc44", mig_mode=True),
)


def chosen(visible):
    return [d.uuid for d in select(HOST, visible)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "MIG-c1", "MIG-d2"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-aa22"]),
        ("1,0", ["GPU-aa22", "GPU-aa11"]),
        (" 0 , 1 ", ["GPU-aa11", "GPU-aa22"]),
        ("0,-1,1", ["GPU-aa11"]),
        ("GPU-aa22", ["GPU-aa22"]),
        ("GPU-aa2,0", ["GPU-aa22", "GPU-aa11"]),
        ("MIG-d2,MIG-c1", ["MIG-d2", "MIG-c1"]),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(visible, expected):
    assert chosen(visible) == expected


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ("7", "'7', which is no GPU of this host"),
        ("GPU-zz", "'GPU-zz', which is no GPU of this host"),
        ("GPU-aa", "'GPU-aa', which fits several GPUs"),
        ("0,GPU-aa11", "twice"),
        ("2", "MIG mode.*MIG-c1, MIG-d2"),
        ("3", "MIG mode.*none"),
    ],
)
def test_an_entry_that_makes_no_sense_is_an_error_that_names_it(visible, words):
    with pytest.raises(DeviceError, match=words):
        select(HOST, visible)


def test_slots_are_numbered_and_have_the_budget_each():
    assert list_devices("slot", 2, 64) == (
        Device("slot-0", 0, "slot", "CPU slot", 64),
        Device("slot-1", 1, "slot", "CPU slot", 64),
    )


@pytest.mark.parametrize(("count", "memory"), [(0, 64), (-1, 64), (2, 0), (2, -5), (2, None)])
def test_slots_without_number_or_memory_are_refused(count, memory):
    with pytest.raises(DeviceError, match=str(memory if count > 0 else count)):
        list_devices("slot", count, memory)


def test_an_unknown_kind_is_refused():
    with pytest.raises(DeviceError, match="tpu"):
        resolve("tpu")


def test_auto_means_slots_where_no_gpu_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve("auto") == "slot"
    assert [d.uuid for d in list_devices("auto", 1, 8)] == ["slot-0"]


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia"), reason="needs a machine with no NVIDIA driver")
def test_without_a_driver_gpus_are_refused_with_the_remedy():
    with pytest.raises(inventory.NoDriver, match="devices.kind slots"):
        list_devices("gpu", 1)


def test_listing_devices_loads_no_heavy_library():
    code = (
        "import sys\nfrom crewbench.devices import inventory, lease, budget\n"
        "inventory.resolve('auto')\n"
        "assert not {'torch', 'pandas', 'numpy', 'transformers'} & set(sys.modules)"
    )
    scripts = Path(__file__).parents[2] / "scripts"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(scripts)}, check=True)
