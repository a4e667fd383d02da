"""What a person who runs the workflow is told of the time, and what the tables say of it afterwards."""

import csv
import re

import pytest

from checkout import STUDY

ABOUT = r"about \d+ (s|min)"


def told(done):
    return re.findall(r"^crewbench: (.*)$", done.text, re.MULTILINE)


def test_a_run_tells_beforehand_how_long_it_takes_and_after_each_trial_what_is_left(finished):
    before, after_one, after_all = told(finished.first_run)
    assert re.fullmatch(rf"2 trials to run \(0 done before\), {ABOUT} on 8 CPU slots", before)
    assert re.fullmatch(rf"1 of 2 trials done, {ABOUT} left", after_one)
    assert re.fullmatch(r"2 of 2 trials done in (\d+ s|\d+ min)", after_all)


def test_a_dry_run_tells_how_long_the_trials_take_that_are_left(copy):
    copy.study = {**STUDY, "repeats": 2}
    (line,) = told(copy.snakemake("-n"))
    assert re.fullmatch(rf"2 trials to run \(2 done before\), {ABOUT} on 8 CPU slots", line)


def test_nothing_is_told_where_no_trial_will_run_or_quiet_is_asked_for(copy):
    copy.study = {**STUDY, "report": {"title": "Another"}}
    assert told(copy.snakemake("-n")) == []
    copy.study = {**STUDY, "repeats": 2}
    assert told(copy.snakemake("-n", "--quiet", "progress")) == []


def test_the_table_study_has_one_session_of_trials_in_the_order_drawn(finished):
    with open(finished.place / "results/tables/study.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["trials"], row["exclusive"], row["out_of_order"]) == ("2", "true", "0")
    wall, bound = float(row["wall_s"]), float(row["bound_s"])
    assert 0 < float(row["trials_s"]) == bound < wall
    assert float(row["wall_over_bound"]) == pytest.approx(wall / bound)
