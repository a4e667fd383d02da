"""Attempts that were measured in an allocation each, joined to one trial."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

import made_trials
from crewbench import session, tables
from crewbench.attempts import kept
from crewbench.execute.allocations import join, run_next
from crewbench.records import AgentRow, GpuRow, RoundRow, Status, WorkerRow
from crewbench.tables import one_trial
from crewbench.trial import Cell

CELL = Cell("auto_expand", 2, 2, "eager", "zygote", "asks", {"allocation": "attempt"})
WHAT = made_trials.spec(CELL, 1)


def allocation(root, host, number, rounds, samples, order, **more):
    """What one allocation left: rounds as (round, start, end, status), samples as (instant, device, J)."""
    rows = {
        "rounds.csv": [
            RoundRow(n, "warm" if n else "cold", number, number, start, end, end - start, status=status)
            for n, start, end, status in rounds
        ],
        "agents.csv": [
            AgentRow(0, "cold", number, "agent0", "agent0", "worker0", 0, rounds[0][3], started_at_s=5.5)
        ],
        "workers.csv": [
            WorkerRow("worker0", 0, number, "process", device_uuid=samples[0][1], ready_at_s=5.25)
        ],
        "gpu.csv": [GpuRow(t, device, int(device[-1]), energy_j=energy) for t, device, energy in samples],
    }
    told = {
        "allocations": [{"job_id": str(number), "host": host, "queue_s": 7.0 * number}],
        "bandwidth_gb_s": {},
        "workers": {f"{number}/worker0/0": {}},
        "devices": [{"uuid": uuid, "kind": "gpu", "memory_mib": 64} for uuid in {s[1] for s in samples}],
        "taints": ["a process of somebody else"] if number == 1 else [],
        **more,
    }
    who = made_trials.identity(CELL, 1, host)
    line = made_trials.write_trial(root, WHAT, who, rows, order=order, more=told)
    place = root.parent / "kept" / str(number)
    place.parent.mkdir(exist_ok=True)
    Path(line["dir"]).rename(place)
    (place / "outputs.jsonl").write_text(
        json.dumps({"attempt": number, "token_at_s": [[5.75], [5.8]]}) + "\n"
    )
    return place


@pytest.fixture
def parts(tmp_path):
    """An out-of-memory on one device of host a, from 5 to 8; then on host b a cold round from 6 to 10 and a
    warm one from 10 to 11, on two devices of which one has the first one's name."""
    return [
        allocation(
            tmp_path / "a", "a", 1, [(0, 5.0, 8.0, Status.OOM)],
            [(4.0, "gpu-0", 0.0), (6.0, "gpu-0", 20.0), (8.0, "gpu-0", 40.0), (9.0, "gpu-0", 50.0)], order=0,
        ),
        allocation(
            tmp_path / "b", "b", 2, [(0, 6.0, 10.0, Status.OK), (1, 10.0, 11.0, Status.OK)],
            [(5.0, "gpu-0", 100.0), (6.0, "gpu-0", 110.0), (6.0, "gpu-1", 3.0), (12.0, "gpu-0", 170.0)],
            order=9,
        ),
    ]  # fmt: skip


@pytest.fixture
def joined(tmp_path, parts):
    out = tmp_path / "trials" / CELL.trial_id(1) / WHAT.spec8
    join(parts, out)
    return out


def rows(out, name):
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_kept_attempts_are_those_with_a_record_up_to_the_first_without(tmp_path):
    for name in ("1/trial.json", "2/agents.csv", "3/trial.json"):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
    assert [p.name for p in kept(tmp_path)] == ["1"]


@pytest.mark.parametrize(
    ("gpus", "ended"), [(2, "ok"), (2, "oom"), (3, "ok"), (3, "timeout")], ids=lambda value: str(value)
)
def test_a_search_that_ended_while_its_attempts_were_joined_is_joined_and_goes_no_further(
    parts, tmp_path, gpus, ended
):
    record = json.loads((parts[-1] / "trial.json").read_text())
    (parts[-1] / "trial.json").write_text(json.dumps(record | {"status": ended}))
    spec = made_trials.spec(replace(CELL, gpus=gpus, agents=gpus), 1)
    out, place = tmp_path / "out", parts[0].parent
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rounds.csv").write_text("half a ro")
    assert run_next(spec, out, place, tmp_path, tmp_path) == 0
    assert json.loads((out / "trial.json").read_text())["status"] == ended
    assert [r["attempt"] for r in rows(out, "rounds.csv")] == ["1", "2", "2"]
    assert list(tmp_path.glob("kept*")) == []


def test_rounds_adjoin_and_every_row_keeps_the_host_that_it_ran_on(joined):
    spans = [
        (r["host"], r["attempt"], r["started_at_s"], r["ended_at_s"]) for r in rows(joined, "rounds.csv")
    ]
    assert spans == [("a", "1", "5", "8"), ("b", "2", "8", "12"), ("b", "2", "12", "13")]
    assert [r["started_at_s"] for r in rows(joined, "agents.csv")] == ["5.5", "7.5"]
    outputs = [json.loads(line) for line in (joined / "outputs.jsonl").read_text().splitlines()]
    assert [output["token_at_s"] for output in outputs] == [[[5.75], [5.8]], [[7.75], [7.8]]]
    assert [r["ready_at_s"] for r in rows(joined, "workers.csv")] == ["5.25", "7.25"]


def test_no_sample_stands_in_another_allocations_rounds_and_energy_counts_on(joined):
    told = [(r["t_at_s"], r["device_uuid"], r["energy_j"]) for r in rows(joined, "gpu.csv")]
    assert told == [
        ("4", "gpu-0", "0"),
        ("6", "gpu-0", "20"),
        ("8", "gpu-0", "40"),
        ("8", "gpu-0", "40"),
        ("8", "gpu-1", "0"),
        ("14", "gpu-0", "100"),
    ]


def test_the_record_is_the_last_ones_with_what_the_others_add(joined):
    record = json.loads((joined / "trial.json").read_text())
    assert record["status"] == "ok"
    assert {d["uuid"] for d in record["devices"]} == {"gpu-0", "gpu-1"}
    assert [(a["attempt"], a["host"], a["shift_s"]) for a in record["allocations"]] == [
        (1, "a", 0),
        (2, "b", 2),
    ]
    assert record["taints"] == ["a process of somebody else"]
    assert (record["sampler"]["samples"], record["lease_waited_s"]) == (200, 1.0)
    assert set(record["workers"]) == {"1/worker0/0", "2/worker0/0"}


def test_the_wait_between_allocations_is_in_no_duration(joined):
    record = json.loads((joined / "trial.json").read_text())
    # The last allocation ran for 45 s, half a second of it waiting for a lease, and the first one's round and
    # its share of the axis are 2 s more; the 540 s between their starts are nowhere.
    assert session.ran(record).duration_s == pytest.approx(45 + 2 - 1.0)


def test_the_tables_read_a_joined_trial(joined):
    line = {"trial_id": CELL.trial_id(1), "spec8": WHAT.spec8, "dir": str(joined)}
    trial = tables.read_trial(line)
    assert [r.attempt for r in trial.rounds] == [1, 2, 2]
    assert one_trial.queued_s(trial.record) == 21.0
