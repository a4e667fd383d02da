"""What is told before a run and after each trial, from real events of Python's logging."""

import json
import logging

import pytest

from crewbench import matrix
from crewbench.config import load
from crewbench.progress import Follower, Progress, done

RUNS = [{"mode": "shared", "agents": 2}, {"mode": "parallel", "gpus": 4, "agents": 4}]
SHARED, PARALLEL = "shared__g1__a2__eager__zygote__base__r", "parallel__g4__a4__eager__zygote__base__r"


@pytest.fixture
def study(root):
    def make(repeats=2, **config):
        config = {"devices": {"kind": "slots", "slots": 8}, "repeats": repeats, "runs": RUNS, **config}
        return matrix.build(load(config, root), root, 0)

    return make


def a_record(trial_id, took_s=10.0, status="ok"):
    return {
        "identity": {"trial_id": trial_id, "repeat": int(trial_id[-1]), "host": "box", "gpus": 1},
        "anchor": {"zero_wall_s": 1000.0},
        "finished_wall_s": 1000.0 + took_s,
        "status": status,
    }


def test_before_a_run_it_says_how_many_trials_and_how_long(study):
    made = study()
    told = Progress(made, made.trials, {}).announcement()
    assert told.startswith("4 trials to run (0 done before), about ")
    assert told.endswith(" s on 8 CPU slots")


def test_only_what_will_run_counts_and_nothing_is_said_where_nothing_will(study):
    made = study()
    known = {SHARED + "1": a_record(SHARED + "1")}
    told = Progress(made, [SHARED + "2"], known).announcement()
    assert told == "1 trial to run (1 done before), about 10 s on 8 CPU slots"
    assert Progress(made, [], known).announcement() == ""


def test_earlier_trials_of_the_same_cell_tell_how_long_one_takes(study):
    made = study(repeats=3)
    known = {SHARED + n: a_record(SHARED + n, took) for n, took in (("1", 50.0), ("2", 70.0))}
    left = Progress(made, [SHARED + "3"], known).left_s(0.0)
    assert left == pytest.approx(60, abs=1)
    # A trial that will run again: what it took the last time counts as well.
    assert Progress(made, [SHARED + "1"], known).left_s(0.0) == pytest.approx(60, abs=1)


def test_after_each_trial_it_says_how_far_it_is_and_what_failed(study):
    made = study()
    progress = Progress(made, made.trials, {})
    said = []
    for position, trial_id in enumerate((SHARED + "1", PARALLEL + "1", SHARED + "2", PARALLEL + "2")):
        status = "oom" if trial_id.startswith("parallel") else "ok"
        progress.started(trial_id, 20.0 * position)
        found = None if trial_id == SHARED + "2" else a_record(trial_id, 19.6, status)
        said.append(progress.ended(trial_id, found, 20.0 * position + 20))
    assert said[0].startswith("1 of 4 trials done, about ")
    assert said[1:] == [
        "2 of 4 trials done (1 out of memory), about 40 s left",
        "3 of 4 trials done (1 out of memory, 1 not measured), about 20 s left",
        "4 of 4 trials done (2 out of memory, 1 not measured) in 80 s",
    ]


def test_what_a_running_trial_has_behind_it_is_not_left(study):
    made = study(exclusive=False)
    known = {PARALLEL + "1": a_record(PARALLEL + "1", 100.0), SHARED + "1": a_record(SHARED + "1", 10.0)}
    progress = Progress(made, [PARALLEL + "2", SHARED + "2"], known)
    assert progress.left_s(0.0) == pytest.approx(100, abs=1)
    progress.started(PARALLEL + "2", 0.0)
    assert progress.left_s(80.0) == pytest.approx(20, abs=1)


def test_packed_trials_take_the_time_of_the_area_that_they_fill(study):
    made = study(repeats=6, exclusive=False)
    ids = [PARALLEL + str(n) for n in range(1, 7)]
    known = {ids[0]: a_record(ids[0], 100.0)}
    # Six trials on 4 of 8 slots go in three times two; with a limit of 4 slots one at a time.
    assert Progress(made, ids, known).left_s(0.0) == pytest.approx(300, abs=3)
    assert Progress(made, ids, known, {"gpu": 4}).left_s(0.0) == pytest.approx(600, abs=5)


def test_exclusive_trials_go_at_once_on_as_many_hosts_as_there_may_be(study):
    made = study(repeats=4)
    ids = [SHARED + str(n) for n in range(1, 5)]
    known = {ids[0]: a_record(ids[0], 100.0)}
    assert Progress(made, ids, known).left_s(0.0) == pytest.approx(400, abs=3)
    assert Progress(made, ids, known, {"host": 400}).left_s(0.0) == pytest.approx(100, abs=1)


def test_a_trial_is_done_when_its_record_is_of_this_spec_and_its_files_are_there(study, tmp_path):
    made = study(repeats=1)
    trial = made.trial(SHARED + "1")
    place = tmp_path / trial.dir
    place.mkdir(parents=True)
    path = place / "trial.json"
    assert done(made, tmp_path) == {}
    path.write_text(json.dumps({"spec8": trial.spec8, "files": {"agents.csv": "0"}}))
    assert done(made, tmp_path) == {}
    (place / "agents.csv").touch()
    assert list(done(made, tmp_path)) == [trial.trial_id]
    path.write_text(json.dumps({"spec8": "00000000", "files": {}}))
    assert done(made, tmp_path) == {}
    path.write_text('{"spec8": ')
    assert done(made, tmp_path) == {}


@pytest.fixture
def followed(study):
    """Sends events as Snakemake does; what was said of them."""
    made = study()
    said, logger = [], logging.Logger("a workflow")
    jobs = {7: SHARED + "1", 8: PARALLEL + "1"}
    logger.addHandler(Follower(lambda: (Progress(made, jobs.values(), {}), jobs), a_record, said.append))

    def send(event, **what):
        logger.info("", extra={"event": event, **what})
        return said

    return send


def test_events_of_trials_are_told_and_those_of_other_jobs_are_not(followed):
    from snakemake.logging import LogEvent

    followed(LogEvent.RUN_INFO, stats={})
    followed(LogEvent.RUN_INFO, stats={})
    followed(LogEvent.JOB_STARTED, jobs=[1, 7])
    followed(LogEvent.JOB_FINISHED, job_id=1)
    assert len(followed(LogEvent.JOB_FINISHED, job_id=7)) == 2
    followed(LogEvent.JOB_ERROR, jobid=8)
    said = followed(LogEvent.JOB_ERROR, jobid=8)
    assert [line.split(",")[0] for line in said] == [
        "2 trials to run (0 done before)",
        "1 of 2 trials done",
        "2 of 2 trials done (1 not measured) in 1 s",
    ]


def test_an_event_that_is_not_as_expected_costs_a_line_and_nothing_else(followed, capsys):
    from snakemake.logging import LogEvent

    followed(None)
    assert followed(LogEvent.JOB_INFO) == []
    followed(LogEvent.RUN_INFO, stats={})
    assert len(followed(LogEvent.JOB_FINISHED)) == 1
    assert "job_id" in capsys.readouterr().err
    assert len(followed(LogEvent.JOB_FINISHED, job_id=7)) == 2
