"""What runs again after a change, and what does not: GPU hours are kept, and nothing stale is shown."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from checkout import STUDY

SHARED = "shared__g1__a2__eager__zygote__base__r1"
AFTER_TRIALS = {"tables": 1, "figures": 1, "report": 1}
"""What is made of the trials is made again whenever one of them is."""


def trial_dir(checkout, trial_id=SHARED):
    return next(checkout.place / t["dir"] for t in checkout.manifest["trials"] if t["trial_id"] == trial_id)


def test_a_study_runs_from_nothing_to_the_report(finished):
    assert finished.first_run.jobs == {"model": 1, "trial": 2, "quality": 1, **AFTER_TRIALS}
    assert (finished.place / "results/report.html").stat().st_size > 10_000
    assert [t["status"] for t in finished.trials()] == ["ok", "ok"]


def test_a_finished_study_has_nothing_to_do(finished):
    assert finished.wanted() == {}


def test_one_more_repeat_runs_only_the_new_trials(copy):
    copy.study = {**STUDY, "repeats": 2}
    assert copy.wanted() == {"trial": 2, **AFTER_TRIALS}


def test_one_more_gpu_count_runs_only_its_cells(copy):
    copy.study = {**STUDY, "runs": [STUDY["runs"][0], {"mode": "parallel", "gpus": [1, 2], "agents": 2}]}
    assert copy.wanted() == {"trial": 1, **AFTER_TRIALS}


@pytest.mark.parametrize(
    "change",
    [
        {"report": {"palette": "deep"}},
        {"report": {"png_dpi": 60}},
    ],
)
def test_a_plot_option_replots_and_runs_no_trial(copy, change):
    copy.study = {**STUDY, **change}
    assert copy.wanted() == {"figures": 1, "report": 1}


@pytest.mark.parametrize("threshold", [{"logit_error": 3}, {"deadline_s": 1.5}])
def test_another_judgement_makes_the_tables_anew_and_measures_nothing(copy, threshold):
    copy.study = {**STUDY, "thresholds": threshold}
    assert copy.wanted() == AFTER_TRIALS


def test_a_deleted_check_of_an_engine_is_made_again_alone(copy):
    shutil.rmtree(copy.place / "results/quality")
    assert copy.wanted() == {"quality": 1, **AFTER_TRIALS}


def test_the_engines_check_is_in_the_tables_and_in_the_report(finished):
    (line,) = finished.manifest["checks"]
    record = json.loads((finished.place / line["dir"] / "quality.json").read_text())
    assert (record["status"], record["numbers"]["tokens"]) == ("ok", 96)
    assert "eager engine (agrees with float32)" in (finished.place / "results/report.html").read_text()


def test_changed_code_of_the_check_makes_it_again_and_runs_no_trial(copy):
    copy.edit("scripts/crewbench/observation.py", "MEMORY_FREE_S = ", "MEMORY_FREE_S = 1.0 + ")
    assert copy.wanted() == {"quality": 1, **AFTER_TRIALS}


def test_another_title_only_writes_the_report(copy):
    copy.study = {**STUDY, "report": {"title": "Another"}}
    assert copy.wanted() == {"report": 1}


def test_a_parameter_of_one_run_reruns_that_mode(copy):
    runs = [{**STUDY["runs"][0], "warm_rounds": 1}, STUDY["runs"][1]]
    copy.study = {**STUDY, "runs": runs}
    assert copy.wanted() == {"trial": 1, **AFTER_TRIALS}


def test_another_model_is_built_and_reruns_everything(copy):
    copy.study = {**STUDY, "model": {"seed": 1}}
    assert copy.wanted() == {"model": 1, "trial": 2, "quality": 1, **AFTER_TRIALS}


def test_a_parameter_on_the_command_line_counts_like_one_in_the_file(copy):
    assert copy.wanted("--config", "generation={output_tokens: 5}") == {"trial": 2, **AFTER_TRIALS}
    assert copy.wanted("--config", "generation={output_tokens: 4}") == {}


def test_switching_a_parameter_and_back_reruns_nothing(copy):
    kept = {
        line["dir"]: (copy.place / line["dir"] / "trial.json").read_bytes()
        for line in copy.manifest["trials"]
    }
    runs = [{**STUDY["runs"][0], "warm_rounds": 1}, STUDY["runs"][1]]
    copy.study = {**STUDY, "runs": runs}
    assert copy.run().jobs == {"trial": 1, **AFTER_TRIALS}
    copy.study = STUDY
    assert copy.run().jobs == AFTER_TRIALS, "only the aggregates, and no trial"
    assert {d: (copy.place / d / "trial.json").read_bytes() for d in kept} == kept


def test_a_changed_text_of_a_task_reruns_the_modes_that_use_it(copy):
    copy.edit("config/tasks.yaml", "Plan the work", "Plan all the work")
    assert copy.wanted() == {"report": 1}, "no mode of this study plans, but the manifest holds the text"
    copy.edit("config/tasks.yaml", "Explain the concept", "Explain the idea")
    assert copy.wanted() == {"trial": 2, "quality": 1, **AFTER_TRIALS}


def test_a_real_change_of_measuring_code_reruns_every_trial(copy):
    copy.edit("scripts/crewbench/execute/run.py", "GRACE_S = ", "GRACE_S = 1.0 + ")
    assert copy.wanted() == {"trial": 2, **AFTER_TRIALS}


@pytest.mark.parametrize(
    ("old", "new"),
    [("GRACE_S = ", "# A comment.\nGRACE_S = "), ('"""The interpreter that runs', '"""What runs')],
    ids=["comment", "docstring"],
)
def test_a_comment_in_measuring_code_reruns_nothing(copy, old, new):
    copy.edit("scripts/crewbench/execute/run.py", old, new)
    assert copy.wanted() == {}


def test_touching_sources_reruns_nothing(copy):
    for path in (copy.place / "scripts").rglob("*.py"):
        os.utime(path)
    assert copy.wanted() == {}


def test_a_mode_that_makes_other_deployments_reruns_that_mode(copy):
    copy.edit("scripts/crewbench/modes/shared.py", "concurrency=cell.agents", "concurrency=1")
    assert copy.wanted().get("trial") == 1
    assert SHARED in copy.snakemake("-n").text


def test_a_mode_whose_code_changes_but_not_its_deployments_reruns_no_trial(copy):
    copy.edit("scripts/crewbench/modes/shared.py", "rank=40", "rank=41")
    assert "trial" not in copy.wanted()


def test_changed_code_of_the_figures_redraws_them(copy):
    path = copy.place / "scripts/crewbench/figures/starting.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    wanted = copy.wanted()
    assert wanted.get("figures") == 1
    assert "trial" not in wanted and "tables" not in wanted


def test_a_changed_template_writes_the_report_alone(copy):
    path = copy.place / "scripts/crewbench/report/style.css"
    path.write_text(path.read_text() + "\n/* edited */\n")
    assert copy.wanted() == {"report": 1}


def test_a_deleted_trial_is_noticed_behind_a_finished_report_and_runs_alone(copy):
    (trial_dir(copy) / "trial.json").unlink()
    assert copy.wanted() == {"trial": 1, **AFTER_TRIALS}


def test_one_deleted_file_of_a_trial_is_noticed_too_and_measured_again(copy):
    (trial_dir(copy) / "workers.csv").unlink()
    assert copy.wanted() == {"trial": 1, **AFTER_TRIALS}


@pytest.mark.parametrize(
    ("name", "jobs"), [("tables", AFTER_TRIALS), ("figures", {"figures": 1, "report": 1})]
)
def test_a_deleted_directory_of_results_is_made_again(copy, name, jobs):
    shutil.rmtree(copy.place / "results" / name)
    assert copy.wanted() == jobs


def test_a_deleted_model_comes_back_by_its_script_and_no_finished_trial_reruns(copy):
    shutil.rmtree(copy.place / "results/models")
    command = [sys.executable, "scripts/model.py"]
    subprocess.run(command, cwd=copy.place, env=copy.environment, check=True, capture_output=True)
    assert copy.wanted() == {}
    copy.study = {**STUDY, "repeats": 2}
    assert copy.wanted() == {"trial": 2, **AFTER_TRIALS}


def test_a_deleted_manifest_reruns_nothing_and_is_written_by_the_next_run(copy):
    (copy.place / "results/matrix.json").unlink()
    assert copy.wanted() == {}
    copy.run("--forcerun", "report")
    assert len(copy.manifest["trials"]) == 2


def test_a_dry_run_writes_no_manifest(copy):
    before = (copy.place / "results/matrix.json").read_bytes()
    copy.study = {**STUDY, "repeats": 2}
    copy.wanted()
    assert (copy.place / "results/matrix.json").read_bytes() == before


def test_a_deleted_report_is_written_from_what_is_there(copy):
    (copy.place / "results/report.html").unlink()
    assert copy.wanted() == {"report": 1}


def test_a_half_written_table_of_a_trial_is_an_error_that_names_file_and_remedy(copy):
    path = trial_dir(copy) / "agents.csv"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:-20])
    os.utime(path, ns=times)
    done = copy.snakemake("--forcerun", "tables")
    assert done.code != 0
    log = (copy.place / "results/logs/tables.log").read_text()
    assert "agents.csv" in log and SHARED in log
    assert (copy.place / "results/logs/tables.log").name in done.text
    assert (trial_dir(copy) / "trial.json").exists(), "nothing is lost"


def test_exclusive_trials_run_one_at_a_time_in_the_order_of_the_matrix(finished):
    trials = sorted(finished.trials(), key=lambda t: t["anchor"]["zero_wall_s"])
    assert [t["trial_id"] for t in trials] == [line["trial_id"] for line in finished.manifest["trials"]]
    ends = [t["finished_wall_s"] for t in trials]
    assert all(end <= later["anchor"]["zero_wall_s"] for end, later in zip(ends, trials[1:], strict=False))
    assert not any("another trial ran" in taint for t in trials for taint in t["taints"])


def test_what_a_rule_reserves_is_what_the_matrix_says(finished):
    text = finished.snakemake("-n", "--forceall").text
    assert "gpu=2, host=100" in text and "gpu=1, host=100" in text


def test_the_manifest_is_json_that_says_what_was_wanted(finished):
    manifest = finished.manifest
    assert set(manifest) >= {"config", "model", "devices", "trials", "skipped"}
    assert manifest["config"]["repeats"] == 1
    assert json.dumps(manifest)
