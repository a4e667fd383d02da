"""Devices, checkpoints and disks in a bad state: a clear error or a row that says so, never a hang.

GPUs are a toy NVML's (toy_nvml.c): real as far as listing, leasing and sampling go. Their workers fail, as
there is no CUDA behind it, so these trials end with errors as rows and with what NVML told.
"""

import os
import shutil
import subprocess
import sys

import pytest

from crewbench.devices.inventory import Device
from crewbench.devices.lease import lease
from made_study import ROOT, SCRIPTS, Result, Study, run
from toy_nvml import UUID, ToyNvml, compiled

NO_DRIVER = pytest.mark.skipif(
    os.path.exists("/proc/driver/nvidia"), reason="needs a machine with no NVIDIA driver"
)
ONE = {"warm_rounds": 0, "runs": [{"mode": "shared", "agents": 1}]}
ON_GPUS = {**ONE, "devices": {"kind": "gpu", "gpus": 1}}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def toy(library, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return ToyNvml(library, tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def study(tmp_path, models):
    return lambda config: Study(tmp_path / "study", config, models)


def planned(place, devices, **environment):
    """What scripts/matrix.py says to a study on these devices."""
    config = f'{{"devices": {devices}, "runs": [{{"mode": "shared", "agents": 1}}]}}'
    command = [sys.executable, SCRIPTS / "matrix.py", "--config", config, "--out", place / "matrix.json"]
    return run(*command, cwd=ROOT, check=False, env={**os.environ, **environment})


def tried(made, **environment):
    """The exit code and the last line of a trial that does not work."""
    process = made.start(made.trials[0], **environment)
    _, log = process.communicate()
    assert "Traceback" not in log
    assert not (made.dir(made.trials[0]) / "trial.json").exists()
    return process.returncode, log.strip().splitlines()[-1]


# ---- no GPU to be had


@NO_DRIVER
def test_gpus_without_a_driver_are_refused_when_the_study_is_planned(tmp_path):
    done = planned(tmp_path, '{"kind": "gpu"}')
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert 'devices.kind: found "gpu"; no NVIDIA driver answers here' in done.stderr
    assert "devices.kind slots" in done.stderr


@NO_DRIVER
def test_a_trial_that_comes_to_a_host_without_a_driver_says_so(study):
    code, said = tried(study(ON_GPUS))
    assert code == 1
    assert said.startswith("error: no NVIDIA driver answers here")
    assert "devices.kind slots" in said


@pytest.mark.needs("cc")
@pytest.mark.parametrize(
    ("facts", "visible", "words"),
    [
        ({"driver": 0}, None, "no NVIDIA driver answers here (Driver Not Loaded)"),
        ({"gpus": 0}, None, "the NVIDIA driver answers but shows no GPU"),
        ({}, "", "no GPU may be used here (CUDA_VISIBLE_DEVICES='')"),
        ({}, "7", f"CUDA_VISIBLE_DEVICES names '7', which is no GPU of this host: there are {UUID}"),
        ({}, "GPU-gone", "CUDA_VISIBLE_DEVICES names 'GPU-gone', which is no GPU of this host"),
        ({"lost": 1}, None, "NVML could not list the GPUs: GPU is lost"),
    ],
)
def test_what_keeps_gpus_from_being_used_is_said_by_the_plan_and_by_the_trial(
    study, tmp_path, toy, facts, visible, words
):
    made = study(ON_GPUS)
    toy.says(**facts)
    environment = toy.environment | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = planned(tmp_path, '{"kind": "gpu"}', **environment)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert words in done.stderr
    code, said = tried(made, **environment)
    assert code == 1
    assert said.startswith(f"error: {words}")


@pytest.mark.needs("cc")
def test_more_gpus_than_the_host_has_are_refused_with_both_numbers(study, toy):
    config = {**ON_GPUS, "devices": {"kind": "gpu", "gpus": 2}, "runs": [{"mode": "parallel", "gpus": 2}]}
    code, said = tried(study(config), **toy.environment)
    assert code == 1
    assert said.startswith("error: 2 GPUs are asked for and 1 usable here")


@pytest.mark.needs("cc")
def test_a_packed_trial_takes_the_gpu_that_is_free_and_does_not_wait_for_the_first(
    study, toy, tmp_path, monkeypatch
):
    monkeypatch.setenv("CREWBENCH_LEASE_DIR", str(tmp_path / "leases"))
    toy.says(gpus=2)
    first = Device(UUID, 0, "gpu", "toy", 81_920)
    with lease([first], 1, exclusive_host=False, holder="somebody"):
        result = study({**ON_GPUS, "exclusive": False}).run(
            "shared__g1__a1__eager__zygote__base__r1", **toy.environment
        )
    assert {r["device_uuid"] for r in result.rows("gpu")} == {"GPU-toy-1"}


# ---- a GPU in trouble


@pytest.mark.needs("cc")
def test_somebody_else_on_the_gpu_and_a_hot_clock_taint_the_trial(study, toy):
    toy.says(processes={os.getpid(): 70_000}, used_mib=70_000, throttle=0x48)
    result = study(ON_GPUS).run("shared__g1__a1__eager__zygote__base__r1", **toy.environment)
    assert result.taints == [
        f"a process of somebody else was on {UUID}",
        f"the clock of {UUID} was throttled: "
        "hw_slowdown in 100.0 %, hw_thermal_slowdown in 100.0 % of the samples",
    ]
    assert {r["throttle_reasons"] for r in result.rows("gpu")} == {"hw_slowdown|hw_thermal_slowdown"}
    assert result.trial["status"] == "error"
    assert [r["status"] for r in result.rows("agents")] == ["error"]
    assert result.rows("ooms") == []


@pytest.mark.needs("cc")
def test_nvml_that_dies_in_a_trial_costs_samples_and_not_the_trial(study, toy):
    # From `process` a worker imports for seconds; without CUDA its load fails within milliseconds.
    made = study({**ON_GPUS, "runs": [{**ONE["runs"][0], "start": "process"}]})
    process = made.start(made.trials[0], **toy.environment)
    for line in process.stderr:
        if ": import" in line:
            toy.says(lost=1)
            break
    process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    result = Result(made.dir(made.trials[0]), "")
    assert result.trial["status"] == "error"
    (taint,) = result.taints
    assert taint.startswith("readings of the devices were lost: ")
    assert taint.endswith(f"of {UUID}: GPU is lost")


@pytest.mark.parametrize("mode", ["shared", "auto_expand"])
def test_too_little_memory_for_one_copy_is_rows_and_no_hang(study, mode):
    config = {
        "warm_rounds": 1,
        "runs": [{"mode": mode, "gpus": 2 if mode == "auto_expand" else 1, "agents": 2}],
        "devices": {"kind": "slots", "slots": 2, "slot_memory_mib": 4},
    }
    made = study(config)
    result = made.run(made.trials[0])
    assert result.trial["status"] == "oom"
    ooms = result.rows("ooms")
    assert {r["attempt"] for r in ooms} == ({"1", "2"} if mode == "auto_expand" else {"1"})
    for row in ooms:
        assert (row["free_mib"], row["others_mib"], row["held_by"]) == ("4", "0", "")
        assert float(row["requested_mib"]) > 4
    statuses = {r["status"] for r in result.rows("agents") if r["round"] == "0"}
    assert "oom" in statuses and "ok" not in statuses


# ---- files


def test_a_shard_that_went_missing_after_the_model_was_made_stops_the_trial_before_it_begins(
    tmp_path, models
):
    made = Study(tmp_path / "made", ONE, models)
    mine = tmp_path / "mine"
    shutil.copytree(made.model / "weights", mine)
    config = {**ONE, "model": {"kind": "local", "path": str(mine)}}
    broken = Study(tmp_path / "study", config, tmp_path / "models")
    shard = next(mine.glob("*.safetensors"))
    shard.unlink()
    code, said = tried(broken)
    assert code == 1
    assert said.startswith(f"error: {shard} is missing: ") and "scripts/model.py" in said
    assert not broken.dir(broken.trials[0]).joinpath("gpu.csv").exists()
    spec = f'{{"kind": "local", "path": "{mine}"}}'
    command = [sys.executable, SCRIPTS / "model.py", "--spec", spec, "--out", tmp_path / "again"]
    again = run(*command, cwd=ROOT, check=False)
    assert again.returncode == 1 and "Traceback" not in again.stderr
    assert str(mine) in again.stderr


MOUNTED = 'mount -t tmpfs -o size=16k tmpfs {0} && exec "$@"'
"""A file system that is full soon, in a mount namespace of its own: gone with the process."""


@pytest.mark.needs("unshare")
def test_a_disk_that_the_samples_fill_costs_samples_and_not_the_trial(study, tmp_path):
    """Only gpu.csv lies on the small disk: it is the file that grows."""
    made = study({**ONE, "sampler": {"hz": 500}})
    small, out = tmp_path / "small", made.dir(made.trials[0])
    small.mkdir()
    out.mkdir(parents=True)
    (out / "gpu.csv").symlink_to(small / "gpu.csv")
    mount = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED.format(small), "sh")
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    result = made.run(made.trials[0], mount)
    assert result.trial["status"] == "ok"
    (taint,) = result.taints
    assert taint.startswith("readings of the devices were lost: ")
    assert "No space left on device; the samples after it are lost" in taint
    assert "gpu.csv" in result.trial["files"]
