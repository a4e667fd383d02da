"""Ray actors on real GPUs: each on the device of its Deployment, whatever Ray numbers."""

import pytest

from crewbench.devices.inventory import list_devices
from made_study import Study

pytestmark = [pytest.mark.gpu, pytest.mark.needs("ray")]


def test_actors_are_pinned_to_the_deployments_devices_by_uuid(tmp_path):
    devices = list_devices("gpu")[:2]
    config = {
        "warm_rounds": 1,
        "devices": {"kind": "gpu", "gpus": len(devices)},
        "runs": [{"mode": "actors", "gpus": len(devices), "agents": 3}],
    }
    study = Study(tmp_path / "study", config)
    result = study.run(study.trials[0])
    assert {r["status"] for r in result.rows("agents")} == {"ok"}
    rows = result.rows("workers")
    # A worker that CUDA shows another device fails (worker.check_pinned), so these are where they say.
    assert [r["device_uuid"] for r in rows] == [devices[i % len(devices)].uuid for i in range(3)]
    for row in rows:
        assert float(row["allocated_peak_mib"] or 0) > 0 or float(row["nvml_process_peak_mib"] or 0) > 0
    assert not [t for t in result.trial["taints"] if "somebody else" in t]
