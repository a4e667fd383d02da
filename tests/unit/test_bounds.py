"""What bounds a crew: each bound is met in a made study, and a missing column is "cannot tell"."""

import pytest

import made_trials
from crewbench import bounds, chain, modes, tables
from crewbench.bounds import BUSY, LAUNCHES, MEMORY, SERIAL, UNKNOWN, Load, bound
from crewbench.trial import Cell

GPU = {"gpu": True, "decode_bytes": 14_500_000_000, "budget_mib": 80_000.0}
LIMIT = 4300.0 / 14.5
"""Tokens a second that the made GPU's bandwidth allows one agent."""


def rows(root, cell, **costs) -> dict:
    made = made_trials.Costs(**{**GPU, "bandwidth_gb_s": 4300.0, **costs})
    line = made_trials.make_trial(root, cell, 1, warm_rounds=1, costs=made)
    (row,) = tables.build(tables.read_manifest(made_trials.write_manifest(root, [line])))["bounds"].to_dict(
        "records"
    )
    return row


def parallel(agents=2):
    return Cell("parallel", agents, agents, "eager", "zygote")


def test_a_crew_that_works_one_at_a_time_is_bound_by_serialisation(tmp_path):
    row = rows(tmp_path, Cell("sequential", 1, 4, "eager", "zygote"), util_pct=20.0, token_s=0.05)
    assert (row["bound"], row["each"]) == (SERIAL, LAUNCHES)
    assert row["overlap"] == pytest.approx(1)
    assert row["why"].startswith("1.00 of 4 agents at work at once; ")


def test_decoding_near_the_bandwidth_is_bound_by_memory(tmp_path):
    row = rows(tmp_path, parallel(), token_s=1 / (0.7 * LIMIT))
    assert row["bound"] == MEMORY
    assert row["bandwidth_pct"] == pytest.approx(70, rel=0.05)


def test_agents_that_share_a_device_add_up_their_reads_unless_the_engine_batches(tmp_path):
    shared = rows(tmp_path / "a", Cell("parallel", 1, 4, "eager", "zygote"), token_s=1 / (0.2 * LIMIT))
    assert shared["bandwidth_pct"] == pytest.approx(80, rel=0.1)
    batched = rows(tmp_path / "b", Cell("served", 1, 4, "vllm", "process"), token_s=1 / (0.2 * LIMIT) / 3.1)
    assert batched["bandwidth_pct"] == pytest.approx(20, rel=0.1)


def test_a_busy_device_that_reads_little_is_called_busy_and_not_compute(tmp_path):
    row = rows(tmp_path, parallel(), token_s=1 / (0.1 * LIMIT))
    assert row["bound"] == row["each"] == BUSY == "a busy device"
    assert row["why"].endswith("a kernel ran 100 % of the time")


@pytest.mark.parametrize(
    ("cell", "processes"),
    [
        (Cell("parallel", 2, 4, "eager", "zygote"), 2),
        (Cell("parallel", 2, 3, "eager", "zygote"), 2),  # on the device with the most
        (Cell("parallel", 4, 4, "eager", "zygote"), 1),
        (Cell("shared", 1, 4, "eager", "zygote"), 1),  # threads of one process
        (Cell("sequential", 1, 4, "eager", "zygote"), 1),  # the others are gone in warm rounds
    ],
    ids=lambda value: value.mode if isinstance(value, Cell) else "",
)
def test_processes_that_share_a_device_take_turns_and_it_is_said(tmp_path, cell, processes):
    why = rows(tmp_path, cell, token_s=1 / (0.1 * LIMIT))["why"]
    said = f"; kernels of {processes} processes take turns"
    assert why.endswith(said) if processes > 1 else "take turns" not in why


def test_a_device_that_waits_is_bound_by_the_hosts_launches(tmp_path):
    row = rows(tmp_path, parallel(), token_s=1 / (0.1 * LIMIT), util_pct=30.0)
    assert row["bound"] == LAUNCHES
    assert "a kernel ran" in row["why"]


@pytest.mark.parametrize(
    ("costs", "missing"),
    [
        ({"bandwidth_gb_s": None}, "bandwidth not measured"),
        ({"util_pct": None, "token_s": 1 / (0.1 * LIMIT)}, "utilisation not measured"),
        ({"util_pct": 65.0, "token_s": 1 / (0.1 * LIMIT)}, "a kernel ran"),
    ],
)
def test_what_was_not_measured_or_lies_between_cannot_be_told(tmp_path, costs, missing):
    row = rows(tmp_path, parallel(), **costs)
    assert row["bound"] == UNKNOWN
    assert missing in row["why"]


def test_a_cpu_slot_has_neither_bandwidth_nor_launches(tmp_path):
    row = rows(tmp_path, parallel(), gpu=False, bandwidth_gb_s=None)
    assert row["bound"] == UNKNOWN
    assert "CPU slot" in row["why"]


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(8, 1.25, 90.0, 90.0), SERIAL),
        (Load(8, 1.26, 50.0, 10.0), MEMORY),
        (Load(8, 1.26, 49.9, 80.0), BUSY),
        (Load(8, 1.26, 49.9, 79.9), UNKNOWN),
        (Load(8, 1.26, 49.9, 50.0), UNKNOWN),
        (Load(8, 1.26, 49.9, 49.9), LAUNCHES),
        (Load(8, 1.26, None, 49.9), LAUNCHES),
        (Load(8, None, 90.0, 90.0), UNKNOWN),
        (Load(1, 1.0, 90.0, 90.0), MEMORY),
    ],
)
def test_the_thresholds_of_the_rule(load, expected):
    assert bound(load)[0] == expected


# The chain ---------------------------------------------------------------------------------------


def test_only_a_mode_whose_steps_read_all_before_them_is_a_chain():
    cell = {"gpus": 2, "agents": 3, "engine": "eager", "start": "zygote"}
    made = {m: list(modes.get(m).attempts(Cell(m, **cell)))[-1] for m in modes.MODES}
    assert [m for m, deployment in made.items() if chain.is_chain(deployment)] == ["cooperative"]
    assert not chain.is_chain(None)


def test_a_chains_prompts_and_prefills_grow_step_by_step(tmp_path):
    cell = Cell("cooperative", 1, 4, "eager", "zygote")
    lines = [made_trials.make_trial(tmp_path, cell, r) for r in (1, 2)]
    lines.append(made_trials.make_trial(tmp_path, Cell("shared", 1, 4, "eager", "zygote"), 1))
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))["chain"]
    assert set(found["mode"]) == {"cooperative"}
    steps = chain.by_step(found)
    assert [s["prompt_tokens"] for s in steps] == [180, 228, 276, 324]
    assert [s["position"] for s in steps] == [1, 2, 3, 4]
    for i, step in enumerate(steps):
        assert step["prefill"].value == pytest.approx(0.12 * (1 + 0.1 * i), rel=0.04)
        assert step["ms_per_token"] == pytest.approx(
            1000 * step["prefill"].value / step["prompt_tokens"], rel=0.04
        )
    assert set(found["rounds"]) == {2}  # warm ones


def test_a_study_without_a_chain_has_an_empty_table(tmp_path):
    line = made_trials.make_trial(tmp_path, Cell("cooperative", 1, 1, "eager", "zygote"), 1)
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, [line])))
    assert found["chain"].empty
    assert len(found["bounds"]) == 1
    assert found["bounds"]["bound"][0] in bounds.UNKNOWN
