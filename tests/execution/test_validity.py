"""What the validity script says of trials that were run: on any machine, without a model."""

import csv
import subprocess
import sys

from made_study import ROOT

MODES = ("parallel", "shared", "sequential")


def test_every_mode_gives_the_same_ids_and_every_round_is_looked_at(results, tmp_path):
    for mode in MODES:
        trials = results[mode].dir.parent
    command = [sys.executable, str(ROOT / "tests/gpu/validity.py"), "--trials", str(trials)]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), (
        done.stderr
    )  # 1: on a busy machine a round may have more idle time than 2 %
    with open(tmp_path / "verdicts.csv", newline="") as file:
        verdicts = {row["claim"]: row for row in csv.DictReader(file)}
    assert set(verdicts) == {"stages", "ids_modes"}
    assert verdicts["ids_modes"]["outcome"] == "met"
    assert all(mode in verdicts["ids_modes"]["note"] for mode in MODES)
    files = [path.read_text().splitlines() for path in trials.glob("*/rounds.csv")]
    worked = [row for lines in files for row in csv.DictReader(lines) if row["status"] == "ok"]
    assert int(verdicts["stages"]["n"]) == len(worked) > 0
