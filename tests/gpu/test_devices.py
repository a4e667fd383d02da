"""Inventory, sampler, ballast and real out-of-memories on a real GPU.

    python -m pytest tests/gpu/test_devices.py -s

Takes about a minute on one GPU, most of it two imports of torch. Uses the first GPU that is visible and
needs 8 GiB free on it.
"""

import csv
import json
import os
import select
import subprocess
import sys
import time

import pytest

from crewbench.devices import inventory
from crewbench.devices.budget import OutOfMemory
from crewbench.devices.inventory import list_devices
from crewbench.devices.sampler import Sampler
from crewbench.records import Identity
from made_study import PYTHONPATH

pytestmark = pytest.mark.gpu

IDENTITY = Identity("t__r1", "parallel", 1, 1, "eager", "process", "base", 1, "here")
CUDA_MIB = 1024

# A process that holds CUDA_MIB on the GPU that it is pinned to, without torch.
HOLDER = f"""
import sys
from crewbench.devices.cuda import Cuda
cuda = Cuda()
assert cuda.take({CUDA_MIB} * 2**20)
print(cuda.uuid, flush=True)
sys.stdin.read()
"""

# The same, started by a process that ends at once: nobody's child any more, as another user's would be.
STRANGER = f"""
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
{HOLDER}
"""

OUT_OF_MEMORY = """
import json, sys
import torch
from crewbench.devices.budget import OutOfMemory, is_cuda_oom
properties = torch.cuda.get_device_properties(0)
said = {"uuid": str(properties.uuid), "errors": []}
held = torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
try:
    torch.empty(int(sys.argv[1]) * 2**20, dtype=torch.uint8, device="cuda")
except Exception as error:
    assert is_cuda_oom(error), error
    said["text"] = str(error)
    said["oom"] = OutOfMemory.from_cuda(error, "load", "GPU-" + said["uuid"]).to_dict()
import os
said["pid"] = os.getpid()
print(json.dumps(said))
"""

BYTES = """
import sys
from crewbench.checkpoint import synthetic
print(synthetic.build("tiny", 7, sys.argv[1], sys.argv[2], device=sys.argv[3]).sha256)
"""

BALLAST_HOLDER = """
import sys
from crewbench.devices.ballast import ballasts
from crewbench.devices.inventory import list_devices
with ballasts(list_devices("gpu", 1), 4096) as held:
    print(*(b.pid for b in held.values()), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def device():
    return list_devices("gpu")[0]


def run(code, *arguments, uuid=None):
    pinned = {} if uuid is None else {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **pinned, "PYTHONPATH": PYTHONPATH},
    )


def end(process):
    process.kill()
    process.communicate()


def free_mib(device):
    from crewbench.devices import nvml

    return nvml.free_mib([device.uuid])[device.uuid]


def sampled(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sample_until(path, enough):
    found = sampled(path)
    while not enough(found):
        time.sleep(0.02)  # the file is the thing waited for: it has no event
        found = sampled(path)
    return found


# ---- inventory


def test_the_devices_are_those_of_nvidia_smi(device):
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    known = {
        uuid: (int(i), float(mib)) for i, uuid, mib in (line.split(", ") for line in listed.splitlines())
    }
    for d in list_devices("gpu"):
        assert (d.index, round(d.memory_mib)) == known[d.uuid]
        assert d.kind == "gpu"
        assert d.name
    assert inventory.resolve("auto") == "gpu"


def test_cuda_visible_devices_is_respected(device, monkeypatch):
    for visible in (str(device.index), device.uuid, device.uuid[:12]):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert list_devices("gpu") == (device,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(inventory.NoDevices, match="CUDA_VISIBLE_DEVICES=''"):
        list_devices("gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "97")
    with pytest.raises(inventory.DeviceError, match="'97'"):
        list_devices("gpu")


def test_more_than_there_is_is_refused_with_the_numbers(device):
    here = len(list_devices("gpu"))
    with pytest.raises(inventory.TooFewDevices, match=f"{here + 1} GPUs are asked for and {here} usable"):
        list_devices("gpu", here + 1)
    with pytest.raises(inventory.TooLittleMemory, match="lower the budget"):
        list_devices("gpu", 1, device.memory_mib + 1)


def test_a_process_pinned_by_uuid_gets_that_gpu():
    for wanted in list_devices("gpu"):
        process = run(HOLDER, uuid=wanted.uuid)
        assert wanted.uuid.endswith(process.stdout.readline().strip())
        end(process)


# ---- sampler


def test_the_sampler_sees_memory_power_and_processes(device, tmp_path):
    path = tmp_path / "gpu.csv"
    sampler = Sampler(path, IDENTITY, [device], 20, time.monotonic())
    sampler.start()
    first = sampled(path)[0]
    mine = run(HOLDER, uuid=device.uuid)
    mine.stdout.readline()
    sample_until(path, lambda rows: float(rows[-1]["used_mib"]) - float(first["used_mib"]) >= CUDA_MIB)
    seen = len(sampled(path))
    sample_until(path, lambda rows: len(rows) >= seen + 20)
    end(mine)
    result = sampler.stop()
    rows = sampled(path)
    print(json.dumps({k: v for k, v in rows[-5].items() if k not in IDENTITY.__slots__}), result)
    for name in (
        "util_pct",
        "memory_util_pct",
        "used_mib",
        "free_mib",
        "power_w",
        "energy_j",
        "temperature_c",
        "sm_clock_mhz",
    ):
        assert all(row[name] for row in rows), name
    assert {row["ballast_mib"] for row in rows} == {"0"}
    assert all(row["memory_rate_mib_s"] for row in rows[1:])
    energy = [float(row["energy_j"]) for row in rows]
    assert energy == sorted(energy)
    assert energy[0] == 0 < energy[-1]
    assert 20 < float(rows[-1]["power_w"]) < 1500
    assert result["errors"] == 0
    assert result["samples"] == len(rows)
    assert result["process_peak_mib"][device.uuid][mine.pid] >= CUDA_MIB
    assert mine.pid not in result["foreign"].get(device.uuid, {})


def test_a_process_that_is_not_the_trials_is_foreign(device, tmp_path):
    stranger = run(STRANGER, uuid=device.uuid)
    stranger.stdout.readline()
    sampler = Sampler(tmp_path / "gpu.csv", IDENTITY, [device], 20, time.monotonic())
    sampler.start()
    try:
        sample_until(tmp_path / "gpu.csv", lambda rows: len(rows) >= 3)
    finally:
        stranger.stdin.close()
        result = sampler.stop()
        stranger.stdout.close()
        stranger.wait()
    print(result)
    held = result["foreign"][device.uuid]
    assert max(mib for mib in held.values() if mib is not None) >= CUDA_MIB


def test_integrated_power_is_near_the_energy_counter(device, tmp_path):
    path = tmp_path / "gpu.csv"
    sampler = Sampler(path, IDENTITY, [device], 50, time.monotonic())
    sampler.start()
    sample_until(path, lambda rows: len(rows) >= 150)
    result = sampler.stop()
    points = [(float(r["t_at_s"]), float(r["power_w"]), float(r["energy_j"])) for r in sampled(path)]
    integrated = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:], strict=False))
    print(f"integrated {integrated:.1f} J, counter {points[-1][2]:.1f} J, late {result['late']}")
    assert integrated == pytest.approx(points[-1][2], rel=0.2)


# ---- ballast and out of memory


def test_the_ballast_leaves_the_budget_free_and_gives_all_back(device):
    from crewbench.devices import nvml
    from crewbench.devices.ballast import ballasts

    before = free_mib(device)
    with ballasts([device], 4096) as held:
        ballast = held[device.uuid]
        print(f"ballast {ballast.mib:.0f} MiB leaves {ballast.free_mib:.1f} MiB, NVML {free_mib(device):.1f}")
        assert 4096 <= ballast.free_mib <= 4096 + 2
        assert free_mib(device) == pytest.approx(4096, abs=64)
        assert ballast.mib == pytest.approx(before - 4096, abs=64)
    assert nvml.wait_until_free({device.uuid: before}, deadline_s=60)


def test_a_budget_that_is_not_free_is_refused(device):
    from crewbench.devices.ballast import ballasts

    with pytest.raises(inventory.TooLittleMemory, match="less than the budget"):
        with ballasts([device], device.memory_mib):
            pass


def test_the_ballast_dies_with_a_trial_that_is_killed(device):
    from crewbench.devices import nvml

    before = free_mib(device)
    trial = run(BALLAST_HOLDER)
    pidfd = os.pidfd_open(int(trial.stdout.readline()))
    assert free_mib(device) < before - 1024
    end(trial)
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)
    assert nvml.wait_until_free({device.uuid: before}, deadline_s=60)


def test_the_sampler_takes_the_ballast_off_what_counts_as_used(device, tmp_path):
    from crewbench.devices.ballast import ballasts

    path = tmp_path / "gpu.csv"
    with ballasts([device], 4096) as held:
        taken = {uuid: ballast.mib for uuid, ballast in held.items()}
        sampler = Sampler(path, IDENTITY, [device], 20, time.monotonic(), ballast_mib=taken)
        sampler.start()
        result = sampler.stop()
        ballast_pid = held[device.uuid].pid
    row = sampled(path)[0]
    assert float(row["ballast_mib"]) == pytest.approx(taken[device.uuid])
    assert float(row["free_mib"]) == pytest.approx(4096, abs=64)
    assert float(row["used_mib"]) < device.memory_mib - taken[device.uuid] - 4096 + 64
    assert ballast_pid not in result["foreign"].get(device.uuid, {})


def test_an_out_of_memory_is_cudas_own_and_becomes_data(device):
    from crewbench.devices.ballast import ballasts

    with ballasts([device], 4096) as held:
        out, _ = run(OUT_OF_MEMORY, 6144, uuid=device.uuid).communicate(timeout=300)
        ballast_pid, ballast_mib = held[device.uuid].pid, held[device.uuid].mib
    said = json.loads(out.splitlines()[-1])
    print(said["text"])
    assert device.uuid.endswith(said["uuid"])
    oom = OutOfMemory.from_dict(said["oom"])
    assert (oom.phase, oom.simulated) == ("load", False)
    assert oom.requested_mib == pytest.approx(6144)
    assert 0 < oom.free_mib < 4096 - 512
    assert oom.reserved_mib == pytest.approx(512, abs=1)
    assert oom.holders[said["pid"]] > 512
    assert oom.holders[ballast_pid] == pytest.approx(ballast_mib, rel=0.02)


# ---- bandwidth


def test_the_memory_bandwidth_is_measured_and_all_memory_comes_back(device):
    from crewbench.devices import bandwidth, nvml

    before = free_mib(device)
    began = time.monotonic()
    found = bandwidth.measured([device])[device.uuid]
    print(f"{found} in {time.monotonic() - began:.2f} s")
    assert (found["why"], found["copies"], found["copy_mib"]) == ("", bandwidth.COPIES, 1024)
    # Between a small card's and what no card of today reaches.
    assert 100 < found["min"] <= found["median"] <= found["max"] < 20_000
    assert found["max"] < 1.1 * found["min"]
    assert nvml.wait_until_free({device.uuid: before}, deadline_s=60)


def test_under_a_ballast_the_bandwidth_is_measured_with_what_is_left(device):
    from crewbench.devices import bandwidth
    from crewbench.devices.ballast import ballasts

    whole = bandwidth.measured([device])[device.uuid]
    with ballasts([device], 2560):
        found = bandwidth.measured([device])[device.uuid]
    print(found)
    assert found["why"] == ""
    assert 256 <= found["copy_mib"] < 1280  # its own context takes some of it
    assert found["median"] == pytest.approx(whole["median"], rel=0.1)


# ---- checkpoint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_made_on_the_gpu_has_the_bytes_of_one_made_on_the_cpu(dtype, tmp_path):
    both = [run(BYTES, dtype, tmp_path / where, where) for where in ("cpu", "cuda")]
    cpu, gpu = (process.communicate(timeout=300)[0].strip() for process in both)
    assert len(cpu) == 64
    assert cpu == gpu
