"""Two results cell by cell: what is paired, what may be claimed, what is not comparable and why."""

import csv
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import made_trials
from crewbench import compare, tables
from crewbench.compare import (
    BETTER,
    NOT_APART,
    NOT_COMPARABLE,
    PAIRED,
    REGRESSED,
    SAME,
    UNPAIRED,
    WORSE,
    Result,
)
from crewbench.records import Status
from crewbench.report import comparing
from crewbench.trial import Cell

ROOT = Path(__file__).resolve().parents[2]
CELL = {"mode": "parallel", "gpus": 2, "agents": 8, "engine": "eager", "start": "zygote", "variant": "base",
        "compile_cache": "none", "workload": "explain"}  # fmt: skip
MACHINE = {
    "cpu": frozenset({"Two cores"}),
    "cores": frozenset({"2"}),
    "packages.torch": frozenset({"2.13.0"}),
}


def result(seconds: dict[str, float], repeats: int = 6, host: str = "box", day: int = 1, **more) -> Result:
    """Cells (modes) whose cold makespan is `seconds`, give or take 2 %."""
    draw = random.Random(f"{sorted(seconds)}{host}{day}")
    trials = []
    for repeat in range(1, repeats + 1):
        for mode, s in seconds.items():
            cold_s = s * draw.gauss(1, 0.02)
            trials.append(
                {**CELL, "mode": mode, "host": host, "repeat": repeat, "status": Status.OK, "cold_s": cold_s,
                 "warm_s": cold_s / 4, "output_tokens_per_round": 256, "device_name": "Made GPU",
                 "simulated_budget": False, "random_weights": True, "spec8": f"{mode}{repeat}",
                 "started_wall": f"2026-11-{day:02d}T10:{repeat:02d}:00+00:00"}
            )  # fmt: skip
    return Result(f"day {day}", trials, {host: MACHINE}, **more)


def changed(made: Result, **fields) -> Result:
    return replace(made, trials=[{**t, **fields} for t in made.trials])


def row(found, metric: str = "cold_s", mode: str = "parallel"):
    (one,) = (r for r in found.rows if r.metric == metric and r.cell["mode"] == mode)
    return one


BEFORE = result({"parallel": 10.0, "shared": 20.0})


# What may be claimed ------------------------------------------------------------------------------


def test_a_cell_that_got_slower_is_a_regression():
    found = compare.compare(BEFORE, result({"parallel": 12.0, "shared": 20.0}, day=2))
    assert (found.code, found.answer) == (REGRESSED, "Regressed: B is worse in 1 of 2 cells.")
    slower = row(found)
    assert (slower.verdict, slower.how, slower.n_a, slower.n_b) == (WORSE, UNPAIRED, 6, 6)
    assert slower.found.ratio.low < 1.2 < slower.found.ratio.high
    assert row(found, mode="shared").verdict == NOT_APART
    assert slower.p_corrected > slower.found.p


def test_equal_results_are_the_same():
    found = compare.compare(BEFORE, result({"parallel": 10.0, "shared": 20.0}, day=2))
    assert (found.code, found.answer) == (SAME, "No regression in 2 of 2 cells.")
    assert {r.verdict for r in found.rows} == {NOT_APART}


def test_a_result_is_the_same_as_itself():
    found = compare.compare(BEFORE, BEFORE)
    assert found.code == SAME and found.differences == []
    assert row(found).found.ratio.value == 1.0 and row(found).how == PAIRED


def test_what_got_faster_is_better_and_no_regression():
    found = compare.compare(BEFORE, result({"parallel": 8.0, "shared": 20.0}, day=2))
    assert (found.code, row(found).verdict) == (SAME, BETTER)
    assert found.answer == "No regression in 2 of 2 cells, 1 better."


def test_more_of_what_is_better_higher_is_better():
    before, after = (
        replace(r, trials=[{**t, "warm_tokens_per_s": 1000 / t["cold_s"]} for t in r.trials])
        for r in (BEFORE, result({"parallel": 8.0, "shared": 24.0}, day=2))
    )
    found = compare.compare(before, after, ["warm_tokens_per_s"])
    verdicts = [row(found, "warm_tokens_per_s", mode).verdict for mode in ("parallel", "shared")]
    assert verdicts == [BETTER, WORSE]


def test_a_change_within_the_tolerance_is_none():
    after = result({"parallel": 10.8, "shared": 20.0}, day=2)
    assert compare.compare(BEFORE, after).code == REGRESSED
    assert compare.compare(BEFORE, after, tolerance_pct=15).code == SAME
    assert compare.compare(BEFORE, result({"parallel": 13.0}, day=2), tolerance_pct=15).code == REGRESSED


def test_a_cell_that_no_longer_works_is_worse():
    after = changed(result({"parallel": 10.0, "shared": 20.0}, day=2))
    after = replace(
        after,
        trials=[{**t, "status": Status.OOM} if t["mode"] == "shared" else t for t in after.trials],
    )
    found = compare.compare(BEFORE, after)
    assert found.code == REGRESSED
    assert row(found, compare.WORKED, "shared").verdict == WORSE
    assert row(found, "cold_s", "shared").reason == "measured in A alone"


# What is paired -----------------------------------------------------------------------------------


def test_trials_of_one_host_in_turn_are_paired_by_repeat_and_others_are_not():
    device = {"box": {**MACHINE, "device.0": frozenset({"GPU-0"})}}
    a, b = (replace(result({"parallel": s}, day=1), facts=device) for s in (10.0, 10.1))
    assert row(compare.compare(a, b)).how == PAIRED
    later = replace(result({"parallel": 10.1}, day=2), facts=device)
    assert row(compare.compare(a, later)).how == UNPAIRED
    other = replace(b, facts={"box": {**MACHINE, "device.0": frozenset({"GPU-1"})}})
    assert row(compare.compare(a, other)).how == UNPAIRED, "another machine of the same name"


def test_other_hosts_of_the_same_kind_are_independent_samples():
    found = compare.compare(BEFORE, result({"parallel": 12.0}, host="other", day=1))
    assert (row(found).how, row(found).verdict) == (UNPAIRED, WORSE)
    assert found.only_a == ["Shared, 2 GPUs, 8 agents, eager, zygote start, base"]


# What is not comparable ---------------------------------------------------------------------------


def why(a: Result, b: Result) -> str:
    found = compare.compare(a, b)
    assert found.code == NOT_COMPARABLE
    return found.answer


def test_under_five_repeats_nothing_is_claimed():
    said = why(BEFORE, result({"parallel": 30.0}, repeats=4, day=2))
    assert said == "Not comparable: too few repeats: 4, and 5 on each side are needed."
    one = compare.compare(BEFORE, result({"parallel": 30.0}, repeats=1, day=2))
    assert row(one).reason.startswith("too few repeats: 1")
    assert row(one).found.ratio.value == pytest.approx(3.0, rel=0.1)


def test_without_a_common_cell_nothing_is_compared():
    assert "no cell in common" in why(BEFORE, result({"served": 1.0}, day=2))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"device_name": "Another GPU"}, "other devices: Made GPU against Another GPU"),
        ({"output_tokens_per_round": 512}, "other output tokens a round: 256 against 512"),
        ({"simulated_budget": True}, "other simulated budget"),
    ],
)
def test_other_work_and_other_devices_are_not_comparable(fields, said):
    assert said in why(BEFORE, changed(result({"parallel": 10.0}, day=2), **fields))


def test_another_kind_of_host_is_not_comparable():
    slow = {"box": {**MACHINE, "cpu": frozenset({"Slow"})}}
    said = why(BEFORE, replace(result({"parallel": 10.0}, day=2), facts=slow))
    assert "another machine: cpu Two cores against Slow" in said
    unknown = replace(result({"parallel": 10.0}, host="far", day=2), facts={})
    assert "whose processors are not known" in why(BEFORE, unknown)


def test_another_model_other_texts_and_another_variant_are_not_comparable():
    def made(**more) -> Result:
        return result({"parallel": 10.0}, **more)

    assert "another model: dtype" in why(made(model={"dtype": "float32"}), made(model={"dtype": "bfloat16"}))
    assert "the crew's texts differ" in why(made(crew={"agents": ["a"]}), made(crew={"agents": ["b"]}))
    small, large = ({"variants": {"base": {"output_tokens": n, "loader": None}}} for n in (8, 16))
    assert "variant base means something else" in why(made(config=small), made(config=large))


def test_what_else_differs_is_listed():
    newer = {"box": {**MACHINE, "packages.torch": frozenset({"2.14.0"}), "driver": frozenset({"600"})}}
    after = replace(result({"parallel": 10.0, "shared": 20.0}, day=2), facts=newer, config={"seed": 2})
    found = compare.differences(replace(BEFORE, config={"seed": 1, "runs": [1]}), changed(after, spec8="x"))
    assert ("environment.packages.torch", "2.13.0", "2.14.0") in found
    assert ("environment.driver", "–", "600") in found
    assert ("config.seed", "1", "2") in found and ("config.runs", "[1]", "–") in found
    assert ("trials' specs", "12, 0 in common", "1, 0 in common") in found


# False alarms -------------------------------------------------------------------------------------


@given(st.permutations(range(8)))
def test_the_order_of_rows_changes_nothing(order):
    few = result({"parallel": 10.0, "shared": 20.0}, repeats=4)
    shuffled = replace(few, trials=[few.trials[i] for i in order])
    assert compare.compare(shuffled, few).answer == compare.compare(few, few).answer


def test_equal_results_hardly_ever_regress():
    modes = dict.fromkeys(("parallel", "shared", "sequential", "served"), 10.0)
    before = result(modes, repeats=5)
    alarms = sum(compare.compare(result(modes, 5, day=d + 2), before).code == REGRESSED for d in range(100))
    assert alarms <= 9  # half of 5 % of 100 would be worse in B; 9 is the binomial's 99 % bound


# Files --------------------------------------------------------------------------------------------

COSTS = made_trials.Costs(gpu=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Path]:
    """Three results on disk as a study leaves them: before, the same later, and one that is slower."""
    places = {}
    for name, seconds in (("before", 0.02), ("after", 0.02), ("slower", 0.03)):
        root = tmp_path_factory.mktemp(name)
        lines = [
            made_trials.make_trial(
                root / "trials",
                Cell("shared", 1, 2, "eager", "zygote"),
                repeat,
                warm_rounds=1,
                costs=replace(COSTS, token_s=seconds),
                order=repeat + 5000 * len(places),
            )
            for repeat in range(1, 6)
        ]
        manifest = made_trials.write_manifest(root, lines)
        tables.write(tables.build(tables.read_manifest(manifest)), root / "tables")
        places[name] = root
    for file in (places["after"] / "tables").glob("*.parquet"):
        file.unlink()  # a reference has CSV alone
    return places


def call(*words) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts/compare.py", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_says_same_regressed_or_not_comparable_by_its_exit_code(results, tmp_path):
    same = call(results["before"], results["after"])
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.splitlines()[-1] == "No regression in 1 of 1 cell."
    worse = call(results["after"], results["slower"], "--csv", tmp_path / "rows.csv")
    assert worse.returncode == 1
    assert re.search(r"Shared, 1 GPU, 2 agents.* Warm makespan, s .* worse +independent", worse.stdout)
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["metric"] for r in rows] == ["cold_s", "warm_s", "worked"]
    assert float(rows[1]["ratio"]) > 1.2 and rows[1]["verdict"] == "worse"
    nowhere = call(results["before"], "nowhere")
    assert nowhere.returncode == 2 and "2x-h200-core" in nowhere.stderr


def test_references_are_found_by_name_and_old_ones_can_be_read():
    old = compare.read(compare.find("2x-h200-core", ROOT))
    found = compare.compare(old, old)
    assert found.code == NOT_COMPARABLE and "too few repeats: 3" in found.answer
    assert {t["compile_cache"] for t in old.trials} == {"none"}
    with pytest.raises(compare.CompareError, match="no such directory"):
        compare.find("1x-nothing", ROOT)


def test_a_broken_manifest_and_missing_tables_are_named(tmp_path):
    with pytest.raises(compare.CompareError, match=r"no trials\.parquet and no trials\.csv .* `make report`"):
        compare.read(tmp_path)
    (tmp_path / "trials.csv").write_text("mode\nshared\n")
    (tmp_path / "environment.csv").write_text("host,key,value\n")
    with pytest.raises(compare.CompareError, match="lacks gpus"):
        compare.read(tmp_path)


def test_files_that_cannot_be_read_are_named(results, tmp_path):
    made = shutil.copytree(results["before"], tmp_path / "made")
    (made / "matrix.json").write_text("[]")
    with pytest.raises(compare.CompareError, match=r"matrix\.json: not a manifest"):
        compare.read(made)
    for name, content in (("trials.parquet", b"PAR1 and no more"), ("trials.csv", b"")):
        (made / "tables" / name).write_bytes(content)
        with pytest.raises(compare.CompareError, match=rf"{name}: cannot be read .*run the workflow again"):
            compare.read(made)
        (made / "tables" / name).unlink()


def test_tables_of_another_study_than_the_manifests_are_not_compared(results, tmp_path):
    # As an interrupt leaves them: a run writes its manifest when it starts and its tables when it ends.
    made = shutil.copytree(results["before"], tmp_path / "made")
    shutil.copy(results["slower"] / "matrix.json", made)
    with pytest.raises(compare.CompareError, match="are of two studies .* let the run come to its end"):
        compare.read(made)


def test_what_cannot_be_written_does_not_exit_like_a_regression(results, tmp_path):
    for option in ("--csv", "--html"):
        done = call(results["before"], results["after"], option, tmp_path / "nowhere" / "out")
        assert done.returncode == 2, done.stdout
        assert "Cannot be written" in done.stderr and "nowhere" in done.stderr
        assert "Traceback" not in done.stderr


# The page -----------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") or name == "src" for name, _ in attrs)


def test_the_page_shows_text_as_text_and_loads_nothing():
    nasty = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m"
    odd = {"box": {**MACHINE, "cpu": frozenset({"Two cores"}), nasty: frozenset({nasty})}}
    after = replace(result({"parallel": 12.0, "served": 1.0}, day=2), facts=odd, name=nasty)
    found = compare.compare(BEFORE, after)
    html = comparing.page(BEFORE, after, found)
    assert {"script", "img", "link", "iframe"}.isdisjoint(Tags(html).tags)
    assert "\x1b" not in html and "&lt;script&gt;" in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert "Regressed: B is worse in 1 of 1 cell." in html
