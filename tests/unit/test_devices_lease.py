"""Leases are exclusive, wait without spinning, and end with the processes that hold them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crewbench.devices.ballast import Ballast
from crewbench.devices.inventory import Device, TooFewDevices
from crewbench.devices.lease import LeaseTimeout, directory, lease

SCRIPTS = Path(__file__).parents[2] / "scripts"
DEVICES = tuple(Device(f"slot-{i}", i, "slot", "CPU slot", 100) for i in range(4))
SPAWN = multiprocessing.get_context("spawn")

HOLDER = """
import sys
from crewbench.devices.inventory import Device
from crewbench.devices.lease import lease
devices = [Device(f"slot-{i}", i, "slot", "CPU slot", 100) for i in range(4)]
held = lease(devices, int(sys.argv[1]), exclusive_host=sys.argv[2] == "exclusive", holder="the other trial")
print(" ".join(d.uuid for d in held.devices), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("CREWBENCH_LEASE_DIR", str(tmp_path / "leases"))


class Other:
    """A process that holds a lease until it is killed."""

    def __init__(self, count, how="packed"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(count), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        )

    def devices(self):
        return self.process.stdout.readline().split()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def work_on_a_device(number, gate, out):
    """Leases one or two devices over and over, and tells when it held which."""
    gate.wait()
    for turn in range(3):
        with lease(DEVICES, 1 + (number + turn) % 2, exclusive_host=False) as held:
            start = time.monotonic_ns()
            os.sched_yield()  # a chance for the others to get in between, if they could
            out.put([(d.uuid, start, time.monotonic_ns()) for d in held.devices])


def test_thirty_processes_over_four_devices_never_overlap():
    # Forked from one that has imported all: thirty interpreters would take minutes on two cores.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__.rpartition(".")[2]])
    gate, out = context.Barrier(30), context.Queue()
    processes = [context.Process(target=work_on_a_device, args=(i, gate, out)) for i in range(30)]
    for p in processes:
        p.start()
    holds = [hold for _ in range(90) for hold in out.get(timeout=120)]
    for p in processes:
        p.join()
        assert p.exitcode == 0
    overlaps = [
        (a, b)
        for i, a in enumerate(holds)
        for b in holds[i + 1 :]
        if a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
    ]
    assert overlaps == []
    assert {uuid for uuid, _, _ in holds} == {d.uuid for d in DEVICES}


def test_a_lease_takes_the_first_free_devices():
    with Other(2) as other:
        assert other.devices() == ["slot-0", "slot-1"]
        with lease(DEVICES, 2, exclusive_host=False) as held:
            assert [d.uuid for d in held.devices] == ["slot-2", "slot-3"]


def test_a_killed_holder_gives_its_devices_back():
    with Other(4) as other:
        assert len(other.devices()) == 4
        os.kill(other.process.pid, signal.SIGKILL)
        with lease(DEVICES, 4, exclusive_host=False, deadline_s=60) as held:
            assert len(held.devices) == 4


def test_the_lease_lives_until_the_last_process_that_was_given_it():
    held = lease(DEVICES, 4, exclusive_host=False)
    assert all(os.get_inheritable(fd) for fd in held.fds)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held.fds)
    held.release()
    with pytest.raises(LeaseTimeout):
        lease(DEVICES, 1, exclusive_host=False, deadline_s=0)
    child.kill()
    child.communicate()
    lease(DEVICES, 4, exclusive_host=False, deadline_s=60).release()


def test_a_device_stays_leased_until_the_ballast_of_a_killed_trial_is_gone_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "gate")
    # A ballast that has not ended yet, whatever there is of GPUs here: it waits while Python starts.
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'gate')!r}).read()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    card = Device("GPU-1", 0, "gpu", "a card", 100)
    held = lease([card], 1, exclusive_host=False)
    ballast = Ballast(card, 50, held.fds)
    ballast.start()
    try:
        held.release()
        with pytest.raises(LeaseTimeout):
            lease([card], 1, exclusive_host=False, deadline_s=0)
    finally:
        ballast.stop()
    lease([card], 1, exclusive_host=False, deadline_s=60).release()


def test_a_child_that_was_not_given_the_lease_does_not_keep_it():
    held = lease(DEVICES, 1, exclusive_host=False)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held.release()
    lease(DEVICES, 4, exclusive_host=False, deadline_s=0).release()
    child.kill()
    child.communicate()


def test_waiting_ends_when_a_device_is_released():
    with Other(4) as other:
        other.devices()
        waiting = SPAWN.Process(target=lease_and_leave, args=(4,))
        waiting.start()
        while "ticket" not in why_not():  # until the other process stands in line
            assert waiting.is_alive()
        other.process.kill()
        waiting.join(60)
        assert waiting.exitcode == 0


def why_not():
    with pytest.raises(LeaseTimeout) as refused:
        lease(DEVICES, 1, exclusive_host=False, deadline_s=0)
    return str(refused.value)


def lease_and_leave(count):
    lease(DEVICES, count, exclusive_host=False, deadline_s=50).release()


def test_an_exclusive_lease_waits_for_every_other():
    with Other(1, "packed") as other:
        other.devices()
        with pytest.raises(LeaseTimeout, match="the other trial"):
            lease(DEVICES, 1, exclusive_host=True, deadline_s=0)
    with lease(DEVICES, 1, exclusive_host=True, deadline_s=60) as held:
        assert not held.shared_host


def test_an_exclusive_lease_is_always_of_the_first_devices():
    held = lease(DEVICES, 4, exclusive_host=True)
    still_open = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held.fds[:2]
    )
    held.release()  # the host is free, and two of the devices are not yet
    with pytest.raises(LeaseTimeout, match="2 of 2 devices"):
        lease(DEVICES, 2, exclusive_host=True, deadline_s=0)
    still_open.kill()
    still_open.communicate()
    with lease(DEVICES, 2, exclusive_host=True, deadline_s=60) as again:
        assert [d.uuid for d in again.devices] == ["slot-0", "slot-1"]


def test_nobody_shares_the_host_with_an_exclusive_lease():
    with Other(1, "exclusive") as other:
        other.devices()
        with pytest.raises(LeaseTimeout, match="the other trial"):
            lease(DEVICES, 1, exclusive_host=False, deadline_s=0)


def test_sharing_is_known_to_the_earlier_and_to_the_later_lease():
    with lease(DEVICES, 1, exclusive_host=False) as first:
        assert not first.shared_host
        with lease(DEVICES, 1, exclusive_host=False) as second:
            assert second.shared_host
            assert first.shared_host
        assert second.shared_host
        assert first.shared_host
    with lease(DEVICES, 4, exclusive_host=False) as alone:
        assert not alone.shared_host


def test_after_a_timeout_nothing_is_held():
    with lease(DEVICES[:1], 1, exclusive_host=False):
        with pytest.raises(LeaseTimeout):
            lease(DEVICES, 4, exclusive_host=False, deadline_s=0)
        with lease(DEVICES, 3, exclusive_host=False, deadline_s=0) as rest:
            assert [d.uuid for d in rest.devices] == ["slot-1", "slot-2", "slot-3"]


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_that_cannot_be_had_is_refused_at_once(count):
    with pytest.raises(TooFewDevices, match=f"{count} devices"):
        lease(DEVICES, count)


def test_the_default_directory_is_open_to_every_user(tmp_path, monkeypatch):
    monkeypatch.delenv("CREWBENCH_LEASE_DIR")
    monkeypatch.setattr("crewbench.devices.lease.HOST_TEMPORARY", tmp_path)
    lease(DEVICES, 1).release()
    place = tmp_path / "crewbench-leases"
    assert place.stat().st_mode & 0o7777 == 0o1777
    assert {p.stat().st_mode & 0o777 for p in place.iterdir()} == {0o666}


def test_users_with_temporary_directories_of_their_own_lease_from_each_other(tmp_path, monkeypatch):
    monkeypatch.delenv("CREWBENCH_LEASE_DIR")
    found = set()
    for name in ("one", "another"):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        found.add(directory())
    assert len(found) == 1
