"""What is different on a cluster: an allocation's devices, its time in the queue, a plugin of one version,
and a study that says what only a node could tell."""

import importlib.metadata
import socket

import pytest

from crewbench import cluster, matrix
from crewbench.config import Devices, load
from crewbench.devices import allocation
from crewbench.devices.allocation import Allocation
from crewbench.devices.inventory import DeviceError, NoDevices, TooFewDevices, allocated
from crewbench.problems import ConfigError

JOB = {
    allocation.ALLOCATED: "1",
    "SLURM_JOB_ID": "17",
    "SLURMD_NODENAME": "n3",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "SLURM_STEP_GPUS": "2,3",
    "SLURM_JOB_GPUS": "0,1,2,3",
}


def given(*devices):
    return Allocation("17", "n3", devices, ",".join(devices))


def test_an_allocation_of_ones_own_is_known_by_the_nodes_numbers_of_its_gpus():
    assert allocation.current(JOB) == Allocation("17", "n3", ("2", "3"), "0,1")
    assert allocation.host(JOB) == "n3"


def test_somebody_elses_allocation_is_none_of_the_trials():
    inside_salloc = {name: value for name, value in JOB.items() if name != allocation.ALLOCATED}
    assert allocation.current(inside_salloc) is None
    assert allocation.host(inside_salloc) == "n3", "leases of both kinds of jobs must meet"


def test_outside_of_slurm_a_host_has_its_own_name():
    assert allocation.host({}) == socket.gethostname()


@pytest.mark.parametrize("visible", ["", "NoDevFiles", "-1"])
def test_no_gpu_given_is_another_thing_than_none_asked_for(visible):
    bare = {name: value for name, value in JOB.items() if "GPUS" not in name}
    assert allocation.current({**bare, "CUDA_VISIBLE_DEVICES": visible}).devices == ()
    bare.pop("CUDA_VISIBLE_DEVICES")
    assert allocation.current(bare).devices is None


@pytest.mark.parametrize("uuid", ["GPU-1d4a", "MIG-77f0", "MIG-GPU-1d4a/1/0"])
def test_gpus_are_known_by_uuid_where_slurm_gives_no_numbers(uuid):
    bare = {name: value for name, value in JOB.items() if "GPUS" not in name}
    found = allocation.current({**bare, "CUDA_VISIBLE_DEVICES": f"{uuid},{uuid}x"})
    assert found.devices == (uuid, f"{uuid}x")
    with pytest.raises(DeviceError, match=f"names its GPUs by UUID .*{uuid}"):
        allocated(found, "slot", 2, 56)


def test_slots_have_the_numbers_of_the_gpus_whose_place_they_take():
    assert [d.uuid for d in allocated(given("1", "3"), "slot", 2, 56)] == ["slot-1", "slot-3"]
    assert [d.index for d in allocated(given("1", "3"), "slot", 2, 56)] == [1, 3]


def test_a_trial_on_slots_that_asked_for_no_gpu_has_slots_of_its_own():
    assert [d.uuid for d in allocated(Allocation("17", "n3", None, None), "slot", 2, 56)] == [
        "slot-0",
        "slot-1",
    ]


@pytest.mark.parametrize(("held", "error"), [(("0",), TooFewDevices), (("0", "1", "2"), DeviceError)])
def test_another_number_of_devices_than_the_cell_asks_for_is_refused(held, error):
    with pytest.raises(error, match=f"wants 2 devices and Slurm job 17 holds {len(held)} on node n3"):
        allocated(given(*held), "slot", 2, 56)


def test_a_trial_on_gpus_does_not_take_those_that_slurm_did_not_give():
    with pytest.raises(NoDevices, match="holds no GPU of node n3"):
        allocated(Allocation("17", "n3", None, None), "gpu", 1, None)


SAID = (
    "JobId=17 JobName=x SubmitTime=100 EligibleTime=100 StartTime=130 Restarts=0 Command=(null) Dependency="
)


def test_the_time_in_the_queue_is_from_being_asked_for_to_the_start():
    assert allocation.queue(allocation.fields(SAID)) == {
        "submitted_wall_s": 100,
        "started_wall_s": 130,
        "queue_s": 30.0,
        "restarts": 0,
    }


def test_a_job_that_was_put_back_waited_for_the_start_that_counts():
    again = SAID.replace("EligibleTime=100", "EligibleTime=120").replace("Restarts=0", "Restarts=1")
    told = allocation.queue(allocation.fields(again))
    assert (told["queue_s"], told["restarts"]) == (10.0, 1)


def test_what_the_controller_does_not_say_is_not_known_and_not_zero():
    assert set(allocation.queue({}).values()) == {None}
    assert allocation.queue({"SubmitTime": "Unknown", "StartTime": "5"})["queue_s"] is None


def test_another_version_of_the_plugin_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(cluster.VERSIONS, "snakemake-executor-plugin-slurm", "2.7.0")
    found = importlib.metadata.version("snakemake-executor-plugin-slurm")
    with pytest.raises(ConfigError, match=f"{found} is installed, and 2.7.0 .*run `make install-slurm`"):
        cluster.check_versions()


def test_the_versions_that_are_mended_are_those_that_are_installed_by_make(root):
    lines = (root / "envs/requirements-slurm.in").read_text().splitlines()
    assert [f"{name}=={version}" for name, version in cluster.VERSIONS.items()] == lines[1:]
    cluster.check_versions()


@pytest.mark.parametrize(
    ("devices", "words"),
    [({"kind": "auto"}, "devices.kind"), ({"kind": "gpu"}, "devices.gpus.*how many GPUs a node has")],
)
def test_devices_that_only_a_node_could_tell_must_be_said(devices, words):
    with pytest.raises(ConfigError, match=words):
        cluster.check_devices(Devices(**devices))


def test_devices_that_are_said_are_enough():
    cluster.check_devices(Devices(kind="gpu", gpus=8))
    cluster.check_devices(Devices(kind="slots"))


def test_a_trial_over_several_hosts_is_refused_with_what_to_read(root, tmp_path, monkeypatch):
    config = {
        "repeats": 1,
        "devices": {"kind": "slots"},
        "variants": {"two": {"ray_address": "auto", "hosts": 2}},
        "runs": [{"mode": "actors", "gpus": 2, "agents": 2, "variant": ["base", "two"]}],
    }
    made = matrix.build(load(config, root), root)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"variants\.two\.hosts.*docs/several-hosts\.md"):
        cluster.check_hosts(made)
    for trial in made:
        done = tmp_path / trial.dir / "trial.json"
        done.parent.mkdir(parents=True)
        done.touch()
    cluster.check_hosts(made)


def test_only_jobs_of_a_workflow_in_this_directory_are_in_the_way(tmp_path):
    here = tmp_path.resolve()
    said = (
        f"4|{here}|rule_trial_wildcards_a|b\n5|{here}/other|rule_trial\n6|{here}|mine\n7|{here}|rule_model\n"
    )
    assert cluster.jobs_of(tmp_path, said) == ["4", "7"]


# ---- an allocation for each attempt

ASKS = {"variants": {"asks": {"allocation": "attempt"}}, "repeats": 1}


@pytest.fixture
def asking(root):
    config = {
        **ASKS,
        "devices": {"kind": "slots"},
        "runs": [
            {"mode": "auto_expand", "gpus": 4, "variant": ["base", "asks"]},
            {"mode": "parallel", "gpus": 4, "variant": "asks"},
        ],
    }
    return matrix.build(load(config, root), root)


def test_the_next_allocation_has_the_devices_of_the_first_attempt_that_is_not_kept(asking, tmp_path):
    base, asks = sorted(asking.trials, key=lambda name: "asks" in name)
    assert asking.gpus_next(base, "c0de", tmp_path) == 4
    wanted = []
    for number in range(1, 5):
        wanted.append(asking.gpus_next(asks, "c0de", tmp_path))
        kept = tmp_path / asking.kept_dir(asks, "c0de") / str(number)
        kept.mkdir(parents=True)
        (kept / "trial.json").write_text('{"status": "oom"}')
    assert wanted == [1, 2, 3, 4]
    assert asking.gpus_next(asks, "0ther", tmp_path) == 1, "what other code measured is not joined"
    assert asking.further_allocations == 3


def test_attempts_that_only_wait_to_be_joined_ask_for_the_devices_of_the_last_one(asking, tmp_path):
    asks = next(name for name in asking.trials if "asks" in name)
    for number, status in (1, "oom"), (2, "ok"):
        kept = tmp_path / asking.kept_dir(asks, "c0de") / str(number)
        kept.mkdir(parents=True)
        (kept / "trial.json").write_text(f'{{"status": "{status}"}}')
    assert asking.gpus_next(asks, "c0de", tmp_path) == 2


def test_a_mode_with_one_attempt_has_no_allocation_for_each(asking):
    (skipped,) = asking.skipped
    assert skipped.cell.mode == "parallel" and "one attempt" in skipped.reason


def test_without_a_cluster_a_study_that_asks_for_allocations_is_refused(asking, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="variants.asks.allocation.*--workflow-profile profiles/slurm"):
        cluster.check_variants(asking)
