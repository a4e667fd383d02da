"""A trial whose checkpoint is copied to the node's own disk first."""

import pytest

from made_study import Study


@pytest.fixture(scope="module")
def staged(tmp_path_factory, models):
    """Two trials, one after another, on a node whose scratch directory a variable names; and that place."""
    place = tmp_path_factory.mktemp("node")
    config = {
        "warm_rounds": 0,
        "repeats": 2,
        "model": {"stage": "$NODE_SCRATCH"},
        "runs": [{"mode": "shared", "agents": 1, "start": "disk"}],
    }
    study = Study(tmp_path_factory.mktemp("study") / "s", config, models)
    return study, place, [study.run(trial, NODE_SCRATCH=str(place)) for trial in study.trials]


def test_the_checkpoint_is_copied_once_for_the_node_and_the_trial_says_so(staged):
    study, place, results = staged
    first, second = (r.trial["staged"] for r in results)
    assert (first["copied"], second["copied"]) == (True, False)
    assert first["path"] == second["path"] and first["path"].startswith(str(place))
    assert first["bytes"] > results[0].trial["model"]["weights_bytes"] and first["seconds"] > 0
    assert [line for line in results[0].log.splitlines() if line.startswith("staged: copied ")]
    assert [line for line in results[1].log.splitlines() if line.startswith("staged: found ")]


def test_a_disk_start_evicts_the_copy_and_loads_it(staged):
    _, _, results = staged
    for result in results:
        assert [r["status"] for r in result.rows("agents")] == ["ok"]
        (worker,) = result.rows("workers")
        assert float(worker["cached_share"]) < 0.5


def test_copying_is_over_before_the_first_round(staged):
    _, _, (first, _) = staged
    (cold,) = first.rows("rounds")
    assert float(cold["started_at_s"]) > first.trial["staged"]["seconds"]


def test_a_node_without_the_directory_stops_the_trial_with_its_name(staged):
    study, _, _ = staged
    process = study.start(study.trials[0])
    _, log = process.communicate()
    assert process.returncode == 1
    last = log.strip().splitlines()[-1]
    assert last.startswith("error: model.stage is $NODE_SCRATCH") and "Traceback" not in log
