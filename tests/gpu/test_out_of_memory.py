"""Real out-of-memories of real trials, under a ballast that makes the first GPU a card of a few GiB.

    python -m pytest tests/gpu/test_out_of_memory.py -s

Takes about two minutes on one GPU; needs 5 GiB free on it, and 3 GiB of disk for a checkpoint of 2 GiB.
"""

import json
import os
import sys

import pytest

from crewbench.devices.inventory import list_devices
from crewbench.records import STAGES
from made_study import PYTHONPATH, Study, run

pytestmark = pytest.mark.gpu

# Big enough that the second copy has room for a CUDA context and none for its weights, and in one file: the
# loader `parallel` asks for all of it at once, so that of two copies one always gets it.
CHECKPOINT = """
import sys
from crewbench.checkpoint import synthetic
synthetic.SHAPES["middle"] = synthetic.Shape(1024, 2048, 7168, 20, 16, 4, 128)
print(synthetic.build("middle", 7, "bfloat16", sys.argv[1], shard_bytes=2**33).weights_bytes / 2**20)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The directory of the weights, and their MiB."""
    place = tmp_path_factory.mktemp("middle")
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    made = run(sys.executable, "-c", CHECKPOINT, place, cwd=place, env=environment)
    return place / "weights", float(made.stdout.splitlines()[-1])


@pytest.fixture
def tried(checkpoint, tmp_path, monkeypatch):
    """Runs one trial of two agents on the first GPU with so many GiB of it."""
    device = list_devices("gpu")[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device.uuid)

    def trial(budget_gib, **cell):
        config = {
            "warm_rounds": 0,
            "model": {"kind": "local", "path": str(checkpoint[0])},
            "devices": {"kind": "gpu", "gpus": 1, "memory_budget_gib": budget_gib},
            "variants": {"at-once": {"loader": "parallel"}},
            "runs": [{"mode": "parallel", "gpus": 1, "agents": 2, "variant": "at-once", **cell}],
        }
        study = Study(tmp_path / "study", config)
        result = study.run(study.trials[0])
        for row in result.rows("rounds"):
            stages = sum(float(row[f"{stage}_s"]) for stage in STAGES)
            assert stages == pytest.approx(float(row["makespan_s"]), abs=1e-4)
        for row in result.rows("ooms"):
            print({k: v for k, v in row.items() if k not in ("trial_id", "mode", "host")})
        return device, result

    return trial


def test_of_two_copies_on_a_card_for_one_the_second_runs_out_of_memory_while_loading(tried, checkpoint):
    device, result = tried(4)
    workers = {w["worker"]: w for w in result.rows("workers")}
    (row,) = result.rows("ooms")
    failed = workers[row["worker"]]
    (other,) = (w for w in workers.values() if w is not failed)
    assert (failed["status"], other["status"]) == ("oom", "ok")
    assert (row["round"], row["phase"], row["attempt"], row["step"]) == ("0", "cold", "1", "")
    assert (row["oom_phase"], row["simulated"]) == ("load", "False")
    assert (row["device_uuid"], row["pid"]) == (device.uuid, failed["pid"])
    asked, free = float(row["requested_mib"]), float(row["free_mib"])
    assert asked == pytest.approx(checkpoint[1], rel=0.01)
    assert asked > free > 0
    held = json.loads(row["holders"])
    assert row["pid"] in held
    assert held[other["pid"]] > 256  # its context at least: it may not have loaded all yet
    assert float(row["others_mib"]) == pytest.approx(held[other["pid"]])
    assert float(row["ballast_mib"]) > 1024
    # The two, what is free and the ballast are the card, but for the driver's own share.
    whole = sum(held.values()) + free
    assert whole == pytest.approx(device.memory_mib, rel=0.02)
    assert f"{other['worker']}: " in row["held_by"] and "ballast: " in row["held_by"]
    predicted, peak = float(row["predicted_mib"]), float(other["nvml_process_peak_mib"])
    print(f"predicted {predicted:.0f} MiB, peak {peak:.0f} MiB")
    assert predicted > checkpoint[1]
    assert peak == pytest.approx(predicted, rel=0.15)
    assert {r["status"] for r in result.rows("agents")} == {"ok", "oom"}
    assert result.trial["status"] == "oom"


def test_a_copy_that_does_not_fit_by_itself_is_a_row_with_nobody_else_on_the_card(tried):
    device, result = tried(2, mode="shared", agents=1)
    (row,) = result.rows("ooms")
    assert (row["oom_phase"], row["device_uuid"]) == ("load", device.uuid)
    assert float(row["requested_mib"]) > float(row["free_mib"])
    assert float(row["others_mib"]) == 0
    assert result.trial["status"] == "oom"


def test_a_card_without_room_for_a_context_is_out_of_memory_too(tried):
    _, result = tried(0.125, mode="shared", agents=1)
    (row,) = result.rows("ooms")
    assert row["oom_phase"] == "load"
    assert [w["status"] for w in result.rows("workers")] == ["oom"]
    assert result.trial["status"] == "oom"


def test_a_budget_that_more_than_the_free_memory_would_need_is_an_error_and_no_result(
    checkpoint, tmp_path, monkeypatch
):
    device = list_devices("gpu")[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device.uuid)
    whole_gib = device.memory_mib / 1024
    config = {
        "model": {"kind": "local", "path": str(checkpoint[0])},
        "devices": {"kind": "gpu", "gpus": 1, "memory_budget_gib": whole_gib},
        "runs": [{"mode": "shared", "agents": 1}],
    }
    study = Study(tmp_path / "study", config)
    process = study.start(study.trials[0])
    _, log = process.communicate()
    assert process.returncode == 1
    assert "less than the budget" in log.strip().splitlines()[-1]
    assert not (study.dir(study.trials[0]) / "trial.json").exists()


def test_a_trial_on_a_quiet_gpu_knows_its_clock_at_each_sample(tried):
    device, result = tried(4, mode="shared", agents=1)
    throttle = result.trial["sampler"]["throttle"][device.uuid]
    print(throttle, result.trial["taints"])
    assert throttle["samples"] == result.trial["sampler"]["samples"]
    assert not any("readings" in taint or "ballast" in taint for taint in result.trial["taints"])
