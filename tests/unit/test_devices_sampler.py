"""The sampler writes what the devices do, loses samples rather than trials, and never outlives its trial."""

import csv
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from crewbench.devices.budget import Ledger
from crewbench.devices.inventory import Device, DeviceError, slots
from crewbench.devices.sampler import Sampler, SamplerError, taints
from crewbench.records import GpuRow, Identity, columns
from toy_nvml import UUID, ToyNvml, compiled

SCRIPTS = Path(__file__).parents[2] / "scripts"
IDENTITY = Identity("t__r1", "parallel", 2, 2, "eager", "zygote", "base", 1, "here")

TRIAL = """
import os, sys, time
from pathlib import Path
from crewbench.devices.inventory import slots
from crewbench.devices.sampler import Sampler
from crewbench.records import Identity
place = Path(sys.argv[1])
identity = Identity("t__r1", "parallel", 1, 1, "eager", "zygote", "base", 1, "here")
sampler = Sampler(place / "gpu.csv", identity, slots(1, 100), 50, time.monotonic(), place / "ledger.json")
sampler.start()
# A child by fork holds all that its parent has open, the sampler's input too.
if os.fork():
    print(sampler.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy():
    """A process that uses a processor, as far as it gets one."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


def sampler(tmp_path, hz=50.0, count=2, **more):
    return Sampler(
        tmp_path / "gpu.csv",
        IDENTITY,
        slots(count, 100),
        hz,
        time.monotonic(),
        tmp_path / "ledger.json",
        **more,
    )


def rows(tmp_path):
    with open(tmp_path / "gpu.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wait_for_rows(tmp_path, count, more=lambda found: True):
    """Until the running sampler has written so many rows, and `more` holds of them."""
    found = rows(tmp_path)
    while len(found) < count or not more(found):
        time.sleep(0.01)  # the file is the thing waited for: it has no event
        found = rows(tmp_path)
    return found


def gone(pidfd):
    """Whether a process ends within a time that no machine needs."""
    return bool(select.select([pidfd], [], [], 60)[0])


def test_start_returns_when_the_first_sample_is_in_the_file(tmp_path):
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    try:
        found = rows(tmp_path)
    finally:
        with_sampler.stop()
    assert [r["device_uuid"] for r in found[:2]] == ["slot-0", "slot-1"]
    assert list(found[0]) == columns(GpuRow)
    assert (found[0]["trial_id"], found[0]["mode"], found[0]["repeat"]) == ("t__r1", "parallel", "1")
    assert 0 < float(found[0]["t_at_s"]) < 60


def test_a_slots_memory_is_what_its_ledger_says(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.charge("slot-1", os.getpid(), "weights", 30, budget_mib=100)
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    ledger.charge("slot-1", os.getpid(), "kv_cache", 20, budget_mib=100)
    wait_for_rows(tmp_path, 8, lambda found: found[-1]["used_mib"] == "50")
    ledger.release(os.getpid())
    result = with_sampler.stop()
    mine = [r for r in rows(tmp_path) if r["device_uuid"] == "slot-1"]
    assert (mine[0]["used_mib"], mine[0]["free_mib"]) == ("30", "70")
    assert (mine[-1]["used_mib"], mine[-1]["free_mib"]) == ("0", "100")
    assert max(float(r["memory_rate_mib_s"] or 0) for r in mine) > 0
    assert result["process_peak_mib"]["slot-1"] == {os.getpid(): 50}


def test_a_slots_utilisation_is_the_cpu_time_of_its_own_processes(tmp_path, busy):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.charge("slot-0", busy.pid, "process", 0, budget_mib=100)
    ledger.charge("slot-1", os.getpid(), "process", 0, budget_mib=100)
    with_sampler = sampler(tmp_path, hz=10)

    def spent():
        return time.clock_gettime((~busy.pid << 3) | 2)

    at_start = spent()
    with_sampler.start()
    started = spent()
    wait_for_rows(tmp_path, 12)
    seen_so_far = spent()
    with_sampler.stop()
    at_end = spent()
    own = [r for r in rows(tmp_path) if r["device_uuid"] == "slot-0"]
    at, util = [float(r["t_at_s"]) for r in own], [r["util_pct"] for r in own]
    assert util[0] == ""  # nothing to compare the first sample with
    seen = sum(float(u or 0) / 100 * (b - a) for u, a, b in zip(util[1:], at, at[1:], strict=False))
    # The first sample may be late, and the last interval, too short to tell, is left out.
    assert seen_so_far - started - 0.2 <= seen <= at_end - at_start + 0.05
    assert seen < 1.1 * (at[-1] - at[0])  # one thread: at most one core, and the clock's grain


def test_what_a_slot_lacks_is_empty_and_not_zero(tmp_path):
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    with_sampler.stop()
    for row in rows(tmp_path):
        for name in (
            "memory_util_pct",
            "power_w",
            "energy_j",
            "temperature_c",
            "sm_clock_mhz",
            "ballast_mib",
        ):
            assert row[name] == ""


def test_samples_come_on_their_deadlines_without_drift(tmp_path):
    with_sampler = sampler(tmp_path, hz=20, count=1)
    with_sampler.start()
    wait_for_rows(tmp_path, 21)
    result = with_sampler.stop()
    at = [float(r["t_at_s"]) for r in rows(tmp_path)]
    assert result["samples"] == len(at)
    # Every deadline is either met or counted late: the span holds as many periods as both together.
    span = at[-2] - at[0]
    assert span / 0.05 == pytest.approx(len(at) - 2 + result["late"], abs=1.5 + result["late"])
    assert result["errors"] == 0


def test_a_sampler_that_was_held_up_counts_late_samples_and_catches_up(tmp_path):
    with_sampler = sampler(tmp_path, hz=50, count=1)
    with_sampler.start()
    wait_for_rows(tmp_path, 3)
    os.kill(with_sampler.pid, signal.SIGSTOP)
    time.sleep(0.3)  # not a wait for anything: the length of the hold-up
    os.kill(with_sampler.pid, signal.SIGCONT)
    before = len(rows(tmp_path))
    wait_for_rows(tmp_path, before + 3)
    result = with_sampler.stop()
    assert result["late"] >= 10 and result["missed"] >= 9
    assert "the sampler missed" in taints({**result, "samples": 40})[0]
    at = [float(r["t_at_s"]) for r in rows(tmp_path)]
    assert at == sorted(at)
    gap, resumed = max((b - a, b) for a, b in zip(at, at[1:], strict=False))
    assert gap >= 0.3
    # No burst to make up for the lost ones: a tenth of a second has 6 deadlines, and one was missed before.
    assert sum(resumed <= t <= resumed + 0.1 for t in at[:-1]) <= 7


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def toy(library, tmp_path, monkeypatch):
    """A GPU by a toy NVML, for the sampler's process."""
    made = ToyNvml(library, tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def against(result):
    """What the result says against its trial, but for a sampler that this machine gave no CPU."""
    return [taint for taint in taints(result) if "sampler missed" not in taint]


def gpu_sampler(tmp_path):
    gpu = Device(UUID, 0, "gpu", "Toy", 81920.0)
    return Sampler(tmp_path / "gpu.csv", IDENTITY, [gpu], 50, time.monotonic())


@pytest.mark.needs("cc")
def test_reasons_for_a_throttled_clock_are_written_and_counted_by_sample(tmp_path, toy):
    toy.says(throttle=0x4)
    with_sampler = gpu_sampler(tmp_path)
    with_sampler.start()
    wait_for_rows(tmp_path, 3)
    toy.says(throttle=0x4 | 0x8 | 0x40)
    wait_for_rows(tmp_path, 5, lambda found: found[-1]["throttle_reasons"] != "sw_power_cap")
    toy.says(throttle=0x200)
    wait_for_rows(tmp_path, 7, lambda found: found[-1]["throttle_reasons"] == "board_limit")
    result = with_sampler.stop()
    said = [r["throttle_reasons"] for r in rows(tmp_path)]
    hot = said.count("sw_power_cap|hw_slowdown|hw_thermal_slowdown")
    assert result["throttle"][UUID] == {
        "samples": len(said),
        "reasons": {
            "sw_power_cap": said.count("sw_power_cap") + hot,
            "hw_slowdown": hot,
            "hw_thermal_slowdown": hot,
            "board_limit": said.count("board_limit"),
        },
    }
    share = f"{100 * hot / len(said):.1f} %"
    assert against(result) == [
        f"the clock of {UUID} was throttled: hw_slowdown in {share}, hw_thermal_slowdown in {share} "
        "of the samples"
    ]


@pytest.mark.needs("cc")
def test_a_clock_at_its_power_cap_is_no_taint(tmp_path, toy):
    toy.says(throttle=0x1 | 0x2 | 0x4 | 0x10 | 0x100)
    with_sampler = gpu_sampler(tmp_path)
    with_sampler.start()
    result = with_sampler.stop()
    assert result["throttle"][UUID]["reasons"]["sw_power_cap"] == result["samples"]
    assert against(result) == []


@pytest.mark.needs("cc")
def test_nvml_that_dies_costs_readings_and_says_so(tmp_path, toy):
    with_sampler = gpu_sampler(tmp_path)
    with_sampler.start()
    before = len(wait_for_rows(tmp_path, 3))
    toy.says(lost=1)
    pidfd = os.pidfd_open(with_sampler.pid)
    assert not select.select([pidfd], [], [], 0.2)[0]  # ten samples later it is still there
    os.close(pidfd)
    result = with_sampler.stop()
    assert result["samples"] > len(rows(tmp_path)) >= before
    assert result["errors"] > 0
    throttle = result["throttle"][UUID]
    # Where it was lost in the middle of a sample, that one has its memory and no reasons.
    assert throttle["reasons"] == {} and throttle["samples"] in (len(rows(tmp_path)), len(rows(tmp_path)) - 1)
    (said,) = against(result)
    assert said.startswith("readings of the devices were lost: ") and said.endswith(f"of {UUID}: GPU is lost")


@pytest.mark.needs("cc")
def test_memory_that_nvml_cannot_read_is_an_error_of_the_device(toy):
    toy.says(lost=1)
    code = f"from crewbench.devices import nvml\nnvml.wait_until_free({{{UUID!r}: 1.0}}, 60)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"DeviceError: NVML cannot read the memory of {UUID}: GPU is lost" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sampler_costs_samples_and_not_the_trial(tmp_path, number):
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    wait_for_rows(tmp_path, 6)
    os.kill(with_sampler.pid, number)
    result = with_sampler.stop()
    assert result["samples"] is None
    assert result["errors"] == 1
    assert number.name in result["messages"][0]
    assert "readings of the devices were lost" in taints(result)[0]
    assert len(rows(tmp_path)) >= 6
    json.dumps(result)


def test_a_full_disk_keeps_the_whole_rows_and_is_reported(tmp_path):
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    wait_for_rows(tmp_path, 4)
    # The file may not grow further than into the middle of the next row, which stopping takes at the latest.
    limit = (tmp_path / "gpu.csv").stat().st_size + 50
    resource.prlimit(with_sampler.pid, resource.RLIMIT_FSIZE, (limit, limit))
    result = with_sampler.stop()
    assert result["errors"] >= 1
    assert "File too large" in result["messages"][0]
    found = rows(tmp_path)
    assert len(found) >= 4
    assert all(None not in r.values() and r["free_mib"] == "100" for r in found)
    assert (tmp_path / "gpu.csv").read_text().endswith("\n")


def test_a_disk_that_is_full_from_the_start_is_a_clear_error(tmp_path):
    full = Sampler("/dev/full", IDENTITY, slots(1, 100), 10, 0.0, tmp_path / "ledger.json")
    with pytest.raises(SamplerError, match="No space left"):
        full.start()
    assert full.stop()["errors"] == 1


def test_a_directory_that_is_not_there_is_a_clear_error(tmp_path):
    lost = Sampler(tmp_path / "no/gpu.csv", IDENTITY, slots(1, 100), 10, 0.0, tmp_path / "ledger.json")
    with pytest.raises(SamplerError, match="gpu.csv"):
        lost.start()
    assert lost.pid is None or not Path(f"/proc/{lost.pid}").exists()


def test_slots_without_a_ledger_are_refused(tmp_path):
    blind = Sampler(tmp_path / "gpu.csv", IDENTITY, slots(1, 100), 10, 0.0)
    with pytest.raises(SamplerError, match="ledger"):
        blind.start()


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia"), reason="needs a machine with no NVIDIA driver")
def test_gpus_without_a_driver_are_a_clear_error(tmp_path):
    device = Device("GPU-1", 0, "gpu", "NVIDIA H200", 143771)
    without = Sampler(tmp_path / "gpu.csv", IDENTITY, [device], 10, 0.0)
    with pytest.raises(SamplerError, match="NVML"):
        without.start()


def test_the_sampler_dies_with_a_trial_that_is_killed(tmp_path):
    trial = subprocess.Popen(
        [sys.executable, "-c", TRIAL, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
    )
    pidfd = os.pidfd_open(int(trial.stdout.readline()))
    trial.kill()
    trial.wait()
    assert gone(pidfd)
    os.close(pidfd)
    trial.communicate()


def test_the_sampler_outlives_a_ctrl_c(tmp_path):
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    os.kill(with_sampler.pid, signal.SIGINT)
    before = len(rows(tmp_path))
    wait_for_rows(tmp_path, before + 4)
    assert with_sampler.stop()["samples"] > 2


def test_stop_leaves_no_process(tmp_path):
    with_sampler = sampler(tmp_path)
    with_sampler.start()
    pidfd = os.pidfd_open(with_sampler.pid)
    with_sampler.stop()
    assert gone(pidfd)
    os.close(pidfd)


def test_the_sampler_loads_no_heavy_library(tmp_path):
    code = (
        "import sys\nimport crewbench.devices.sampler, crewbench.devices.ballast, crewbench.devices.nvml\n"
        "assert not {'torch', 'pandas', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SCRIPTS)}, check=True)


def test_a_ballast_is_for_gpus_only():
    from crewbench.devices.ballast import Ballast

    with pytest.raises(DeviceError, match="simulated"):
        Ballast(slots(1, 100)[0], 50)


@pytest.mark.skipif(os.path.exists("/proc/driver/nvidia"), reason="needs a machine with no NVIDIA driver")
def test_a_ballast_without_a_driver_is_a_clear_error():
    from crewbench.devices.ballast import ballasts

    device = replace(slots(1, 100)[0], uuid="GPU-1", kind="gpu")
    with pytest.raises(DeviceError, match="no ballast on GPU-1"), ballasts([device], 50):
        pass
