"""`scripts/study.py`: repeats go up until intervals are narrow, and only new trials run."""

import json
import os
import re
import subprocess
import sys

import pytest

from checkout import STUDY, Checkout


def study(checkout: Checkout, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/study.py", "--configfile", "study.json", *words]
    return subprocess.run(
        command, cwd=checkout.place, capture_output=True, text=True, env=checkout.environment, check=False
    )


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^study: (.*)$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def raised(finished, tmp_path_factory):
    """A study of one repeat, gone on with until the most that it may have; one run has repeats of its own."""
    made = finished.copy(tmp_path_factory.mktemp("raised") / "crewbench")
    shared, parallel = STUDY["runs"]
    made.study = {**STUDY, "runs": [shared, {**parallel, "repeats": 1}], "study": {"repeats_max": 2}}
    kept = {path: path.read_bytes() for path in made.place.glob("results/trials/*/*/trial.json")}
    # As far as the tables: figures would add nothing here.
    made.done = study(made, "--cores", "2", "results/tables", "--quiet", "rules")
    assert made.done.returncode == 0, made.done.stdout + made.done.stderr + made.logs()
    made.kept = kept
    return made


def test_a_study_is_raised_pass_by_pass_and_says_what_is_still_wide(raised):
    one, wide, two, still, end = told(raised.done)
    assert (one, two) == ("1 repeat of 1 cell, at most 2", "2 repeats of 1 cell, at most 2")
    assert re.fullmatch(r"still wide: Shared, 1 GPU, .*: cold without an interval, n = 1", wide)
    assert re.fullmatch(r"still wide: Shared, .*: cold ± [\d,.e+]+ %, n = 2", still)
    assert end == "2 repeats are the most (study.repeats_max): 1 cell still wide"


def test_it_goes_on_where_the_study_was_and_only_new_trials_run(raised):
    trials = sorted(f"{t['mode']}r{t['repeat']}" for t in raised.manifest["trials"])
    assert trials == ["parallelr1", "sharedr1", "sharedr2"]
    assert all(path.read_bytes() == before for path, before in raised.kept.items())
    now = set(raised.place.glob("results/trials/*/*/trial.json"))
    assert len(now - set(raised.kept)) == 1


def test_a_wrong_config_is_named_and_nothing_runs(finished, tmp_path):
    (tmp_path / "wrong.json").write_text(json.dumps({"study": {"half_width": 5}}))
    done = study(finished, str(tmp_path / "wrong.json"))
    assert done.returncode == 2
    assert "study.half_width: unknown key" in done.stderr and "half_width_pct" in done.stderr
    assert told(done) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.yaml"], "none.yaml has 1 problem:\n  the file: does not exist in"),
        (["study.json", "--config", "bogus"], "name=value"),
    ],
)
def test_words_that_cannot_be_read_are_told_without_a_traceback(finished, words, said):
    done = study(finished, *words)
    assert done.returncode == 2 and told(done) == []
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_is_refused_with_what_to_do_instead(finished):
    done = study(finished, "--dry-run")
    assert done.returncode == 2 and "snakemake -n" in done.stderr


def test_a_killed_study_lets_the_running_trial_finish_and_starts_nothing_more(tmp_path, root):
    """With a workflow of two jobs, of which the first waits to be let go on."""
    (tmp_path / "config").symlink_to(root / "config")
    os.mkfifo(tmp_path / "go")
    (tmp_path / "Snakefile").write_text(
        'rule second:\n    input: "first"\n    output: "second"\n    shell: "touch {output}"\n'
        'rule first:\n    output: "first"\n    shell: "touch started; cat go; touch {output}"\n'
    )
    command = [sys.executable, root / "scripts/study.py", "--cores", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as study:
        go = (tmp_path / "go").open("w")  # opens once the job reads it
        study.kill()
        study.wait()
        go.close()
        study.stderr.read()  # ends with the last process that holds it
    assert (tmp_path / "started").exists() and (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()
