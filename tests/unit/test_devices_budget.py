"""The simulated budget of CPU slots, and what an out-of-memory says."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

from crewbench.devices import procfs
from crewbench.devices.budget import Ledger, OutOfMemory, is_cuda_oom

# The wording of PyTorch 2.11 to 2.13 (c10/cuda/CUDACachingAllocator.cpp).
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 112.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which "
    "52.31 MiB is free. Process 4121 has 93.61 GiB memory in use. Process 4188 has 14.02 GiB memory in use. "
    "Process 4189 has 17179869184.00 GiB memory in use. Including non-PyTorch memory, this process has 3.50 "
    "GiB memory in use. 20.00 GiB allowed; Of the allocated memory 2.88 GiB is allocated by PyTorch, with "
    "64.00 MiB allocated in private pools (e.g., CUDA Graphs), and 120.50 MiB is reserved by PyTorch but "
    "unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def charge_from_a_process(path, times, gate, out, counted):
    ledger, answers = Ledger(path), []
    gate.wait()
    for _ in range(times):
        try:
            ledger.charge("slot-0", os.getpid(), "weights", 1, budget_mib=100)
            answers.append("ok")
        except OutOfMemory:
            answers.append("oom")
        except Exception as error:
            answers.append(repr(error))
    out.put(answers)
    counted.wait()  # a dead process would hold nothing


def test_charges_up_to_the_budget_fit_exactly_and_the_next_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    for _ in range(10):
        ledger.charge("slot-0", os.getpid(), "weights", 0.1, budget_mib=1.0)
    with pytest.raises(OutOfMemory) as refused:
        ledger.charge("slot-0", os.getpid(), "kv_cache", 0.5, budget_mib=1.0, phase="prefill")
    oom = refused.value
    assert (oom.phase, oom.device_uuid, oom.simulated) == ("prefill", "slot-0", True)
    assert oom.requested_mib == 0.5
    assert oom.free_mib == pytest.approx(0.0, abs=1e-6)
    assert oom.reserved_mib == pytest.approx(1.0)
    assert oom.holders == {os.getpid(): pytest.approx(1.0)}
    assert "simulated budget" in str(oom)


def test_a_refused_charge_leaves_the_accounts_as_they_were(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.charge("slot-0", os.getpid(), "weights", 60, budget_mib=100)
    before = ledger.usage()
    with pytest.raises(OutOfMemory):
        ledger.charge("slot-0", os.getpid(), "weights", 60, budget_mib=100)
    assert ledger.usage() == before


def test_slots_have_a_budget_each(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.charge("slot-0", os.getpid(), "weights", 90, budget_mib=100)
    ledger.charge("slot-1", os.getpid(), "weights", 90, budget_mib=100)
    assert ledger.usage() == {"slot-0": {os.getpid(): 90}, "slot-1": {os.getpid(): 90}}


def test_what_is_given_back_can_be_charged_again_and_the_peak_stays(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    me = os.getpid()
    ledger.charge("slot-0", me, "weights", 50, budget_mib=100)
    ledger.charge("slot-0", me, "kv_cache", 30, budget_mib=100)
    ledger.charge("slot-0", me, "kv_cache", -30, budget_mib=100)
    ledger.charge("slot-0", me, "kv_cache", 20, budget_mib=100)
    assert ledger.usage() == {"slot-0": {me: 70}}
    assert ledger.peaks() == {"slot-0": {me: 80}}
    ledger.release(me, "kv_cache")
    assert ledger.usage() == {"slot-0": {me: 50}}
    ledger.release(me)
    assert ledger.usage() == {}


def test_a_charge_of_nothing_makes_a_process_known(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.charge("slot-3", os.getpid(), "process", 0, budget_mib=10)
    assert ledger.usage() == {"slot-3": {os.getpid(): 0}}


def test_a_dead_process_holds_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ledger.charge("slot-0", other.pid, "weights", 100, budget_mib=100)
    with pytest.raises(OutOfMemory) as refused:
        ledger.charge("slot-0", os.getpid(), "weights", 100, budget_mib=100)
    assert refused.value.holders == {other.pid: 100}
    other.kill()
    other.communicate()
    ledger.charge("slot-0", os.getpid(), "weights", 100, budget_mib=100)
    assert ledger.usage() == {"slot-0": {os.getpid(): 100}}
    with pytest.raises(ProcessLookupError):
        ledger.charge("slot-0", other.pid, "weights", 1, budget_mib=100)


def test_a_later_process_with_the_same_pid_does_not_inherit_charges(tmp_path):
    path = tmp_path / "ledger.json"
    ledger = Ledger(path)
    ledger.charge("slot-0", os.getpid(), "weights", 100, budget_mib=100)
    data = json.loads(path.read_text())
    data["charges"][0][2] -= 1  # as if a process that started a tick earlier had made it
    path.write_text(json.dumps(data))
    assert ledger.usage() == {}


def test_processes_that_charge_at_once_never_pass_the_budget(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate, out, counted = context.Barrier(3), context.Queue(), context.Event()
    processes = [
        context.Process(
            target=charge_from_a_process, args=(tmp_path / "ledger.json", 50, gate, out, counted), daemon=True
        )
        for _ in range(3)
    ]
    for p in processes:
        p.start()
    answers = [answer for _ in processes for answer in out.get(timeout=60)]
    assert (answers.count("ok"), answers.count("oom")) == (100, 50)
    assert sum(Ledger(tmp_path / "ledger.json").usage()["slot-0"].values()) == 100
    counted.set()
    for p in processes:
        p.join()


def test_what_cuda_says_becomes_data():
    oom = OutOfMemory.from_cuda(RuntimeError(CUDA_TEXT), "load", "GPU-1", pid=77)
    assert oom.requested_mib == 112
    assert oom.free_mib == 52.31
    assert oom.reserved_mib == pytest.approx(2.88 * 1024 + 120.5)
    assert oom.holders == {
        4121: pytest.approx(93.61 * 1024),
        4188: pytest.approx(14.02 * 1024),
        4189: None,  # NVML's "not known"
        77: 3584,
    }
    assert (oom.phase, oom.device_uuid, oom.simulated, str(oom)) == ("load", "GPU-1", False, CUDA_TEXT)


def test_what_cuda_does_not_say_stays_unknown():
    oom = OutOfMemory.from_cuda(RuntimeError("CUDA error: out of memory"), "decode")
    assert (oom.requested_mib, oom.free_mib, oom.reserved_mib, oom.holders) == (None, None, None, {})
    odd = OutOfMemory.from_cuda(
        RuntimeError(
            "Tried to allocate 20 bytes. GPU 0 has a total capacity of 8.00 GiB of which 0 bytes is free."
        ),
        "load",
    )
    assert odd.free_mib == 0
    assert odd.requested_mib == pytest.approx(20 / 2**20)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: device out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError("out of memory"), False),
    ],
)
def test_an_error_is_out_of_gpu_memory_only_if_it_says_so(error, expected):
    assert is_cuda_oom(error) is expected


def test_pytorchs_own_exception_is_recognised():
    import torch

    assert is_cuda_oom(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


def test_an_out_of_memory_crosses_processes_whole():
    oom = OutOfMemory.from_cuda(RuntimeError(CUDA_TEXT), "prefill", "GPU-1", pid=5)
    for copy in (
        pickle.loads(pickle.dumps(oom)),
        OutOfMemory.from_dict(json.loads(json.dumps(oom.to_dict()))),
    ):
        assert isinstance(copy, OutOfMemory)
        assert copy.to_dict() == oom.to_dict()
        assert copy.holders == oom.holders


TWO = ["GPU-aa", "GPU-bb"]


@pytest.mark.parametrize(
    ("text", "uuids", "expected"),
    [
        (CUDA_TEXT, TWO, "GPU-aa"),
        (CUDA_TEXT.replace("GPU 0", "GPU 1"), TWO, "GPU-bb"),
        (CUDA_TEXT.replace("GPU 0", "GPU 2"), TWO, ""),
        ("CUDA error: out of memory", ["GPU-aa"], "GPU-aa"),
        ("CUDA error: out of memory", TWO, ""),
    ],
)
def test_the_device_is_the_one_that_cuda_counts_among_those_of_the_process(text, uuids, expected):
    oom = OutOfMemory.from_cuda(RuntimeError(text), "load", pid=77)
    placed = oom.among(uuids)
    assert placed.device_uuid == expected
    assert {**placed.to_dict(), "device_uuid": ""} == oom.to_dict()
    assert OutOfMemory.from_cuda(RuntimeError(text), "load", "GPU-zz").among(uuids).device_uuid == "GPU-zz"


def test_the_others_are_all_but_the_failing_process_and_what_is_set_aside():
    oom = OutOfMemory.from_cuda(RuntimeError(CUDA_TEXT), "load", pid=77)
    assert oom.others_mib(77) == pytest.approx((93.61 + 14.02) * 1024)
    assert oom.others_mib(77, aside={4121}) == pytest.approx(14.02 * 1024)
    assert oom.others_mib(5) is None  # the list does not name it: its pids are of another namespace
    assert OutOfMemory.from_cuda(RuntimeError("CUDA error: out of memory"), "load").others_mib(77) is None
    assert OutOfMemory("load", simulated=True, holders={1: 20.0, 2: 30.0}).others_mib(3) == 50.0
    assert OutOfMemory("load", simulated=True).others_mib(3) == 0


def test_who_held_what_is_said_with_names_the_largest_first():
    oom = OutOfMemory.from_cuda(RuntimeError(CUDA_TEXT), "load", pid=77)
    assert oom.held_by({4121: "ballast", 77: "worker1"}) == (
        "ballast: 95856.6 MiB; process 4188: 14356.5 MiB; worker1: 3584.0 MiB; process 4189: unknown"
    )
    assert OutOfMemory("load").held_by({}) == ""


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="warmup"):
        OutOfMemory("warmup")


def test_a_process_is_known_by_its_start_and_its_ancestors():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = procfs.started(child.pid)
    assert start is not None
    assert procfs.alive(child.pid, start)
    assert not procfs.alive(child.pid, start + 1)
    assert procfs.descends_from(child.pid, os.getpid())
    assert not procfs.descends_from(os.getpid(), child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead and not yet reaped: a zombie
    assert procfs.started(child.pid) is None
    child.communicate()
    assert procfs.started(child.pid) is None
