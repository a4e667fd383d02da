"""The predicting interpreter, against makespans worked out by hand."""

import pytest

from crewbench import modes
from crewbench.simulate import Costs, simulate
from crewbench.trial import Cell

COSTS = Costs(
    start_s=10.0,
    step_s=2.0,
    stop_s=1.0,
    weights_mib=100.0,
    sequence_mib=10.0,
    context_mib=5.0,
    device_mib=1000.0,
)


def predict(mode, gpus=1, agents=8, costs=COSTS):
    deployment = list(modes.get(mode).attempts(Cell(mode, gpus, agents, "eager", "process")))[-1]
    return simulate(deployment, costs)


def costs(**changes):
    return Costs(**{**{f: getattr(COSTS, f) for f in Costs.__slots__}, **changes})


def test_parallel_agents_on_enough_lanes_take_as_long_as_one():
    prediction = predict("parallel", gpus=8)
    assert prediction.cold_s == pytest.approx(12.0)
    assert prediction.warm_s == pytest.approx(2.0)


def test_two_lanes_serve_eight_agents_at_a_quarter_of_the_speed():
    prediction = predict("parallel", gpus=8, costs=costs(lanes=2))
    assert prediction.cold_s == pytest.approx(48.0)
    assert prediction.warm_s == pytest.approx(8.0)


def test_sequential_pays_start_and_stop_for_every_agent_once():
    prediction = predict("sequential")
    assert prediction.cold_s == pytest.approx(8 * 12.0 + 7 * 1.0)
    assert prediction.warm_s == pytest.approx(16.0)


def test_a_chain_runs_one_step_after_another_on_one_copy():
    prediction = predict("cooperative")
    assert prediction.cold_s == pytest.approx(10.0 + 16.0)
    assert prediction.peak_mib == {0: pytest.approx(115.0)}


def test_a_leader_on_two_workers_plans_lets_work_and_summarises():
    prediction = predict("hierarchical", gpus=2)
    assert prediction.warm_s == pytest.approx(6.0)


def test_memory_is_counted_per_device_with_one_cache_for_each_sequence_in_flight():
    assert predict("parallel", gpus=3).peak_mib == {0: 345.0, 1: 345.0, 2: 230.0}
    assert predict("shared").peak_mib == {0: 185.0}


def test_a_deployment_that_does_not_fit_names_its_devices_and_predicts_no_time():
    prediction = predict("parallel", gpus=3, costs=costs(device_mib=300.0))
    assert prediction.oom == (0, 1)
    assert prediction.cold_s is None and prediction.warm_s is None
