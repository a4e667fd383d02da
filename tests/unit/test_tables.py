"""From trials on disk to tables: hand-computed numbers, checked files, honest denominators."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import made_trials
from crewbench import tables
from crewbench.records import AgentRow, GpuRow, OomRow, RoundRow, Status, WorkerRow, columns
from crewbench.trial import Cell

ROOT = Path(__file__).resolve().parents[2]
ONE = {"agents": 2, "engine": "eager", "start": "zygote"}


def agent(rnd: int, name: str, start: float, end: float, *, attempt: int = 1, **fields) -> AgentRow:
    """A step of 21 tokens that queued from 1.0 on, and whose last half second was decoding."""
    row = AgentRow(
        rnd, "warm" if rnd else "cold", attempt, name, name, "worker0", 0, Status.OK,
        queued_at_s=1.0, started_at_s=start, ended_at_s=end, queue_s=start - 1.0,
        prefill_s=0.25, decode_s=0.5, framework_s=end - start - 0.75, ttft_s=start - 1.0 + 0.25,
        prompt_tokens=10, output_tokens=21, llm_calls=1,
    )  # fmt: skip
    for field, value in fields.items():
        setattr(row, field, value)
    return row


def a_round(rnd: int, start: float, end: float, *, attempt: int = 1, gpus: int = 1, **fields) -> RoundRow:
    return RoundRow(rnd, "warm" if rnd else "cold", attempt, gpus, start, end, end - start, **fields)


def sample(t: float, device: int, used: float, util: float | None) -> GpuRow:
    return GpuRow(
        t, f"slot-{device}", device, util_pct=util, used_mib=used, free_mib=64 - used, energy_j=10 * t
    )


def hand_made(root: Path) -> dict[str, str]:
    """auto_expand: an attempt on one device from 1 to 3 runs out of memory; on two devices a cold round
    from 4 to 10 and warm rounds of 2 s and 4 s."""
    cell = Cell("auto_expand", 2, **ONE)
    rows = {
        "rounds.csv": [
            a_round(0, 1.0, 3.0, status=Status.OOM),
            a_round(0, 4.0, 10.0, attempt=2, gpus=2, idle_s=0.06),
            a_round(1, 10.0, 12.0, attempt=2, gpus=2),
            a_round(2, 12.0, 16.0, attempt=2, gpus=2, idle_s=0.08),
        ],
        "agents.csv": [
            AgentRow(0, "cold", 1, "agent0", "agent0", "worker0", 0, Status.CANCELLED),
            AgentRow(0, "cold", 1, "agent1", "agent1", "worker1", 0, Status.OOM, error="budget is full"),
            agent(0, "agent0", 5.0, 9.0, attempt=2),
            agent(0, "agent1", 7.0, 10.0, attempt=2),
            agent(1, "agent0", 10.0, 12.0, attempt=2, ttft_s=0.25),
            agent(1, "agent1", 10.0, 11.0, attempt=2, ttft_s=0.75),
            agent(2, "agent0", 12.0, 16.0, attempt=2, ttft_s=0.25),
            agent(2, "agent1", 12.0, 16.0, attempt=2, ttft_s=0.75),
        ],
        "workers.csv": [
            WorkerRow("worker0", 0, 1, "process", device_uuid="slot-0", device_index=0),
            WorkerRow("worker1", 0, 1, "process", device_uuid="slot-0", device_index=0, status=Status.OOM,
                      error="budget is full"),
            WorkerRow("worker0", 0, 2, "process", device_uuid="slot-0", device_index=0),
            WorkerRow("worker1", 0, 2, "process", device_uuid="slot-1", device_index=1),
        ],
        "gpu.csv": [
            row
            for t in (0.0, 2.0, 4.0, 10.0, 16.0, 20.0)
            for row in (
                sample(t, 0, 99.0 if t == 20.0 else 40.0, 50.0),
                sample(t, 1, 30.0 if t > 4 else 0.0, 100.0 if t >= 10 else 0.0),
            )
        ],
    }  # fmt: skip
    return made_trials.write_trial(root, made_trials.spec(cell, 1), made_trials.identity(cell, 1), rows)


@pytest.fixture
def trial(tmp_path):
    built = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, [hand_made(tmp_path)])))
    return built, built["trials"].iloc[0]


def test_the_cold_makespan_holds_the_failed_attempts(trial):
    _, row = trial
    assert row["cold_s"] == 9.0
    assert row["failed_attempts_s"] == 3.0
    assert (row["attempts"], row["failed_attempts"], row["gpus_used"]) == (2, 1, 2)


def test_gpu_seconds_charge_each_attempt_with_the_devices_that_it_had(trial):
    _, row = trial
    assert row["cold_gpu_s"] == 1 * 2.0 + 2 * 6.0
    assert row["warm_gpu_s"] == 2 * 3.0


def test_warm_is_the_median_of_the_warm_rounds_on_loaded_workers(trial):
    _, row = trial
    assert row["warm_s"] == 3.0
    assert row["cold_over_warm"] == 3.0
    assert row["warm_ttft_s"] == 0.5


def test_tokens_are_counted_over_the_crew_and_the_first_is_not_decoded(trial):
    _, row = trial
    assert row["warm_tokens_per_s"] == pytest.approx((42 / 2 + 42 / 4) / 2)
    assert row["cold_tokens_per_s"] == pytest.approx(42 / 9)
    assert row["decode_tokens_per_s"] == 40.0


def test_overlap_is_that_of_the_attempt_that_worked(trial):
    _, row = trial
    assert row["cold_overlap"] == pytest.approx((4 + 3) / 5)
    assert row["warm_overlap"] == pytest.approx((3 / 2 + 2) / 2)


def test_the_worst_round_says_how_much_is_unexplained(trial):
    _, row = trial
    assert row["unexplained_pct"] == pytest.approx(2.0)


def test_devices_have_peaks_of_their_own_that_are_never_summed(trial):
    built, row = trial
    devices = built["devices"].set_index("device_uuid")
    # Between 1 and 16 s: the 99 MiB that another program held at 20 s are outside.
    assert devices.loc["slot-0", "used_peak_mib"] == 40.0
    assert devices.loc["slot-1", "used_peak_mib"] == 30.0
    assert row["peak_mib"] == 40.0


def test_device_means_are_means_over_time(trial):
    built, row = trial
    devices = built["devices"].set_index("device_uuid")
    # From the sample at 2 s to that at 16 s: 0 until 4, a rise to 100 at 10, then 100.
    assert devices.loc["slot-1", "util_mean_pct"] == pytest.approx((6 * 50 + 6 * 100) / 14)
    assert devices.loc["slot-1", "warm_util_mean_pct"] == 100.0
    assert devices.loc["slot-0", "energy_j"] == pytest.approx(140.0)
    assert row["energy_j"] == pytest.approx(280.0)


def test_every_attempt_has_its_cost_and_its_message(trial):
    built, _ = trial
    first, second = built["attempts"].to_dict("records")
    assert (first["status"], first["gpus_used"], first["duration_s"], first["gpu_s"]) == ("oom", 1, 2.0, 2.0)
    assert (first["workers_oom"], first["steps_failed"], first["error"]) == (1, 2, "budget is full")
    # Six steps: what it cost is that of its cold round, how it ended that of all three.
    assert (second["status"], second["gpus_used"], second["steps_ok"], second["error"]) == ("ok", 2, 6, "")
    assert (second["duration_s"], second["gpu_s"]) == (6.0, 12.0)


def test_an_attempt_given_up_in_a_warm_round_failed_and_cost_both_rounds(tmp_path):
    cell = Cell("auto_expand", 2, **ONE)
    rows = {
        "rounds.csv": [
            a_round(0, 0.0, 3.0),
            a_round(1, 3.0, 4.0, status=Status.OOM),
            a_round(0, 4.0, 10.0, attempt=2, gpus=2),
            a_round(1, 10.0, 12.0, attempt=2, gpus=2, status=Status.ERROR),
        ],
        "agents.csv": [
            agent(0, "agent0", 1.0, 3.0),
            agent(1, "agent0", 3.0, 4.0, status=Status.OOM, error="budget is full"),
            agent(0, "agent0", 5.0, 10.0, attempt=2),
            agent(1, "agent0", 10.0, 12.0, attempt=2, status=Status.ERROR, error="its answer broke off"),
        ],
    }
    line = made_trials.write_trial(tmp_path, made_trials.spec(cell, 1), made_trials.identity(cell, 1), rows)
    built = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, [line])))
    first, second = built["attempts"].to_dict("records")
    assert (first["status"], first["duration_s"], first["gpu_s"]) == ("oom", 4.0, 4.0)
    assert (first["steps_ok"], first["steps_failed"], first["error"]) == (1, 1, "budget is full")
    assert (second["status"], second["duration_s"], second["gpu_s"]) == ("error", 6.0, 12.0)
    assert (second["steps_ok"], second["steps_failed"]) == (1, 1)
    assert second["error"] == "its answer broke off"


def test_of_an_attempt_given_up_in_a_warm_round_only_its_cost_counts(tmp_path):
    lines = [made_trials.given_up(tmp_path)]
    built = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    row = built["trials"].iloc[0]
    assert (row["cold_s"], row["failed_attempts_s"], row["warm_s"]) == (50.0, 40.0, 10.0)
    assert row["cold_gpu_s"] == 1 * 40.0 + 2 * 10.0 == built["attempts"]["gpu_s"].sum()
    assert list(built["devices"]["warm_util_mean_pct"]) == [100.0, 100.0]  # from 50 to 70 s
    assert list(built["bounds"]["orchestration_pct"]) == [0.0]
    (orchestration,) = built["constraints"].query("constraint == 'orchestration'").to_dict("records")
    assert (orchestration["value"], orchestration["outcome"]) == (0.0, "not reached")
    assert set(built["outputs"]["attempt"]) == {2}


def test_a_device_without_samples_is_empty_and_not_zero(tmp_path):
    cell = Cell("sequential", 1, **ONE)
    rows = {"rounds.csv": [a_round(0, 0.0, 1.0)], "agents.csv": [agent(0, "agent0", 0.0, 1.0)]}
    line = made_trials.write_trial(tmp_path, made_trials.spec(cell, 1), made_trials.identity(cell, 1), rows)
    built = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, [line])))
    assert built["devices"][["used_peak_mib", "util_mean_pct", "energy_j"]].isna().all(axis=None)
    assert built["trials"][["peak_mib", "util_pct", "energy_j"]].isna().all(axis=None)


# Memory bandwidth and what lay compiled -----------------------------------------------------------

GPU = {"gpu": True, "bandwidth_gb_s": 4300.0, "decode_bytes": 14_500_000_000}


def tables_of(lines: list[dict[str, str]], root: Path) -> dict[str, pd.DataFrame]:
    return tables.build(tables.read_manifest(made_trials.write_manifest(root, lines)))


def bandwidth_trial(root: Path, rates: list[float | None], copies: int = 2) -> dict[str, pd.DataFrame]:
    """Two agents of 21 tokens that decode for 0.5 s, cold, and for 0.2 s and 0.25 s, warm."""
    cell = Cell("parallel", len(rates), **ONE)
    rows = {
        "rounds.csv": [a_round(0, 0.0, 3.0), a_round(1, 3.0, 5.0)],
        "agents.csv": [
            agent(0, "agent0", 1.0, 3.0),
            agent(0, "agent1", 1.0, 3.0),
            agent(1, "agent0", 3.0, 5.0, decode_s=0.2),
            agent(1, "agent1", 3.0, 5.0, decode_s=0.25),
        ],
        "workers.csv": [
            WorkerRow(f"worker{i % copies}", 0, 1, "process", device_uuid=f"slot-{i}", device_index=i)
            for i in range(len(rates))
        ],
    }
    why = {None: "no CUDA driver"}
    copied = {
        f"slot-{i}": {
            "min": rate and rate - 10,
            "median": rate,
            "max": rate and rate + 10,
            "why": why.get(rate, ""),
        }
        for i, rate in enumerate(rates)
    }
    more = {"bandwidth_gb_s": copied, "model": {"decode_bytes": 10_000_000_000}}
    what, who = made_trials.spec(cell, 1), made_trials.identity(cell, 1)
    return tables_of([made_trials.write_trial(root, what, who, rows, more=more)], root)


def test_the_limit_of_decoding_is_the_bandwidth_over_the_weights_that_a_token_reads(tmp_path):
    row = bandwidth_trial(tmp_path, [3000.0, 4000.0])["trials"].iloc[0]
    # Median of the devices 3500 GB/s over 10 GB; the agents decode 20 tokens in 0.2 s and in 0.25 s.
    assert row["decode_limit_tokens_per_s"] == pytest.approx(350.0)
    assert row["decode_tokens_per_s"] == pytest.approx((100 + 80) / 2)
    assert row["bandwidth_share"] == pytest.approx(90 / 350)


def test_devices_have_their_bandwidth_or_why_there_is_none(tmp_path):
    devices = bandwidth_trial(tmp_path, [3000.0, None])["devices"].set_index("device_uuid")
    names = ["bandwidth_min_gb_s", "bandwidth_gb_s", "bandwidth_max_gb_s"]
    assert list(devices.loc["slot-0", names]) == [2990.0, 3000.0, 3010.0]
    assert devices.loc["slot-1", names].isna().all()
    assert list(devices["bandwidth_note"]) == ["", "no CUDA driver"]


def test_without_a_bandwidth_the_share_is_empty(tmp_path):
    row = bandwidth_trial(tmp_path, [None])["trials"].iloc[0]
    assert row[["decode_limit_tokens_per_s", "bandwidth_share"]].isna().all()
    assert row["decode_tokens_per_s"] == pytest.approx(90.0)


def test_devices_that_read_a_copy_together_have_the_limit_of_their_sum(tmp_path, monkeypatch):
    from dataclasses import replace

    from crewbench.engines import ENGINES

    in_turn = bandwidth_trial(tmp_path / "a", [4000.0, 4000.0], copies=1)["trials"].iloc[0]
    monkeypatch.setitem(ENGINES, "eager", replace(ENGINES["eager"], devices_together=True))
    together = bandwidth_trial(tmp_path / "b", [4000.0, 4000.0], copies=1)["trials"].iloc[0]
    assert in_turn["decode_limit_tokens_per_s"] == pytest.approx(400.0)
    assert together["decode_limit_tokens_per_s"] == pytest.approx(800.0)


def test_the_summary_has_the_shares_median_and_range(tmp_path):
    cell = Cell("sequential", 1, **ONE)
    costs = [made_trials.Costs(token_s=t, **GPU) for t in (0.01, 0.02, 0.04)]
    lines = [made_trials.make_trial(tmp_path, cell, r, costs=c) for r, c in enumerate(costs, 1)]
    row = metric(tables_of(lines, tmp_path)["summary"], "bandwidth_share")
    # 100, 50 and 25 of 296.55 tokens/s, within the 3 % that the made-up machine varies by.
    assert row["max"] == pytest.approx(0.337, rel=0.05)
    assert row["median"] == pytest.approx(0.169, rel=0.05)
    assert row["min"] == pytest.approx(0.084, rel=0.05)


def test_trials_that_found_other_things_compiled_are_other_start_states(tmp_path):
    cell = Cell("parallel", 2, 2, "compiled", "process")
    empty = made_trials.Costs(compile_s=40.0, compile_cache="empty", **GPU)
    filled = made_trials.Costs(compile_s=10.0, compile_cache="filled", **GPU)
    lines = [made_trials.make_trial(tmp_path, cell, r, costs=empty if r == 1 else filled) for r in (1, 2, 3)]
    built = tables_of(lines, tmp_path)
    assert list(built["trials"]["compile_cache"]) == ["empty", "filled", "filled"]
    assert list(built["trials"]["compile_cache_files"]) == [0, 120, 120]
    by_state = built["summary"].query("metric == 'compile_s'").set_index("compile_cache")
    assert list(by_state.loc[["empty", "filled"], "n"]) == [1, 2]
    assert by_state.loc["empty", "median"] == pytest.approx(40, rel=0.06)
    assert by_state.loc["filled", "median"] == pytest.approx(10, rel=0.06)


# What the files must be --------------------------------------------------------------------------


def cli(manifest: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "tables.py", "--matrix", manifest, "--out", out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def study(tmp_path):
    cells = [Cell("parallel", 2, **ONE), Cell("shared", 1, **ONE)]
    return made_trials.make_results(tmp_path, cells, repeats=1, warm_rounds=1)


def trial_dir(manifest: Path, position: int = 0) -> Path:
    return Path(json.loads(manifest.read_text())["trials"][position]["dir"])


@pytest.mark.parametrize("name", ["agents.csv", "workers.csv", "ooms.csv", "gpu.csv", "outputs.jsonl"])
def test_a_half_written_file_is_named_with_the_remedy(study, name):
    file = trial_dir(study) / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(tables.TableError) as raised:
        tables.build(tables.read_manifest(study))
    assert f"{file}: half-written or altered" in str(raised.value)
    assert f"delete {file.parent} and run again" in str(raised.value)


def test_the_command_fails_plainly_and_writes_nothing(study, tmp_path):
    file = trial_dir(study) / "gpu.csv"
    file.write_bytes(file.read_bytes()[:-20])
    done = cli(study, tmp_path / "tables")
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "tables").exists()


def test_the_command_writes_every_table(study, tmp_path):
    done = cli(study, tmp_path / "tables")
    assert done.returncode == 0, done.stderr
    assert "2 trials" in done.stdout
    assert len(tables.load(tmp_path / "tables")["trials"]) == 2


def test_all_problems_are_told_at_once(study):
    (trial_dir(study, 0) / "gpu.csv").unlink()
    (trial_dir(study, 1) / "trial.json").write_text('{"trial_id": ')
    with pytest.raises(tables.TableError) as raised:
        tables.build(tables.read_manifest(study))
    said = str(raised.value)
    assert "gpu.csv: missing" in said
    assert "trial.json: not valid JSON" in said


def test_a_trial_that_is_not_done_is_named(study):
    (trial_dir(study) / "trial.json").unlink()
    with pytest.raises(tables.TableError, match="is not done; run again"):
        tables.build(tables.read_manifest(study))


def test_a_trial_of_another_spec_is_refused(study):
    data = json.loads(study.read_text())
    data["trials"][0]["spec8"] = "00000000"
    study.write_text(json.dumps(data))
    with pytest.raises(tables.TableError, match="the manifest's is '00000000'"):
        tables.build(tables.read_manifest(study))


def rewrite(directory: Path, name: str, old: str, new: str) -> None:
    """Changes a file and its hash, as another version of the code might have written it."""
    import hashlib

    file = directory / name
    file.write_text(file.read_text().replace(old, new, 1))
    record = json.loads((directory / "trial.json").read_text())
    record["files"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (directory / "trial.json").write_text(json.dumps(record))


def test_columns_of_another_version_are_refused(study):
    rewrite(trial_dir(study), "rounds.csv", "makespan_s", "duration_s")
    with pytest.raises(tables.TableError, match="rounds.csv: its columns are those of another version"):
        tables.build(tables.read_manifest(study))


def test_a_trial_of_a_version_that_wrote_fewer_files_is_named_with_the_remedy(study):
    here = trial_dir(study)
    (here / "ooms.csv").unlink()
    record = json.loads((here / "trial.json").read_text())
    del record["files"]["ooms.csv"]
    (here / "trial.json").write_text(json.dumps(record))
    with pytest.raises(tables.TableError) as raised:
        tables.build(tables.read_manifest(study))
    said = (
        f"{here / 'ooms.csv'}: not in trial.json: another version measured this trial; delete {here} and run"
    )
    assert said in str(raised.value)


def test_the_ooms_of_all_trials_are_one_table_with_its_types(tmp_path):
    cells = [Cell("auto_expand", 4, 8, "eager", "zygote"), Cell("shared", 1, 2, "eager", "zygote")]
    made = tables.build(tables.read_manifest(made_trials.make_results(tmp_path, cells, repeats=2)))
    ooms = made["ooms"]
    assert set(ooms["mode"]) == {"auto_expand"} and set(ooms["repeat"]) == {1, 2}
    first = ooms.iloc[0]
    assert (first["attempt"], first["worker"], first["step"], first["oom_phase"]) == (
        1,
        "worker3",
        "",
        "load",
    )
    assert (first["requested_mib"], first["free_mib"], first["others_mib"]) == (200.0, 40.0, 600.0)
    assert json.loads(first["holders"]) == {"4000": 200.0, "4010": 200.0, "4020": 200.0}
    assert bool(first["simulated"]) is True


def test_a_study_without_an_out_of_memory_has_the_table_with_the_same_types(study, tmp_path):
    tables.write(tables.build(tables.read_manifest(study)), tmp_path / "tables")
    ooms = tables.load(tmp_path / "tables")["ooms"]
    assert len(ooms) == 0
    assert list(ooms) == columns(OomRow)
    assert (ooms["requested_mib"].dtype, ooms["simulated"].dtype) == (float, bool)


def test_a_truth_that_is_none_is_named(tmp_path):
    cell = Cell("auto_expand", 2, 8, "eager", "zygote")
    manifest = made_trials.make_results(tmp_path, [cell], repeats=1)
    rewrite(trial_dir(manifest), "ooms.csv", ",True", ",yes")
    with pytest.raises(tables.TableError, match="simulated: 'yes' is no bool"):
        tables.build(tables.read_manifest(manifest))


@pytest.mark.parametrize("name", ["rounds.csv", "gpu.csv"])
def test_a_cell_that_is_no_number_is_named(study, name):
    rewrite(trial_dir(study), name, "\n", "\n" + ",".join(["x"] * 28) + "\n")
    with pytest.raises(tables.TableError, match=name):
        tables.build(tables.read_manifest(study))


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"trials": []}'])
def test_what_is_no_manifest_is_named_with_the_remedy(tmp_path, text):
    manifest = tmp_path / "matrix.json"
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(tables.TableError, match="matrix.json: .*make report"):
        tables.read_manifest(manifest)


def test_a_manifest_without_trials_is_an_error(tmp_path):
    with pytest.raises(tables.TableError, match="lists 0 trials"):
        tables.read_manifest(made_trials.write_manifest(tmp_path, []))


# Denominators, pairs and cells -------------------------------------------------------------------


def metric(summary: pd.DataFrame, name: str, **cell) -> dict:
    rows = summary[summary["metric"] == name]
    for column, value in cell.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0].to_dict()


def summary_of(lines: list[dict[str, str]], root: Path) -> pd.DataFrame:
    return tables.build(tables.read_manifest(made_trials.write_manifest(root, lines)))["summary"]


def test_a_trial_that_failed_stays_in_the_denominator_and_out_of_the_mean(tmp_path):
    cell = Cell("shared", 1, **ONE)
    fail = (1, "agent1", Status.TIMEOUT, "no answer within 60 s")
    lines = [made_trials.make_trial(tmp_path, cell, r, fail=fail if r == 2 else None) for r in (1, 2, 3)]
    row = metric(summary_of(lines, tmp_path), "cold_s")
    assert (row["trials"], row["ok"], row["timeout"], row["n"]) == (3, 2, 1, 2)


def test_a_cell_that_never_worked_is_a_row_that_is_not_estimable(tmp_path):
    cell = Cell("parallel", 1, agents=8, engine="eager", start="zygote")
    row = metric(summary_of([made_trials.make_trial(tmp_path, cell, 1)], tmp_path), "cold_s")
    assert (row["trials"], row["ok"], row["oom"]) == (1, 0, 1)
    assert pd.isna(row["estimate"])
    assert row["note"].startswith("not estimable")


def test_one_trial_has_an_estimate_without_an_interval(tmp_path):
    row = metric(
        summary_of([made_trials.make_trial(tmp_path, Cell("shared", 1, **ONE), 1)], tmp_path), "warm_s"
    )
    assert row["estimate"] > 0
    assert pd.isna(row["low"])
    assert row["note"] == "one trial has no interval"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every mode, three repeats."""
    root = tmp_path_factory.mktemp("whole")
    cell = {"mode": "sequential", "gpus": 2, **ONE, "variant": "base", "options": {}}
    skipped = [{**cell, "reason": "runs on one GPU, not on 2"}]
    manifest = made_trials.make_results(root, made_trials.study_cells(), skipped=skipped)
    return tables.build(tables.read_manifest(manifest))


def test_only_modes_that_do_the_same_work_are_compared_with_sequential(whole):
    compared = whole["summary"][whole["summary"]["metric"] == "speedup_cold"]
    assert set(compared["mode"]) == {"parallel", "auto_expand", "shared"}
    assert set(compared["workload"]) == {"explain"}
    assert set(compared["start"]) == {"zygote"}


def test_a_speedup_is_paired_by_repeat(whole):
    trials = whole["trials"].query("start == 'zygote'")
    ours = trials.query("mode == 'shared'").set_index("repeat")["cold_s"]
    theirs = trials.query("mode == 'sequential'").set_index("repeat")["cold_s"]
    expected = ((theirs / ours).prod()) ** (1 / 3)
    assert metric(whole["summary"], "speedup_cold", mode="shared")["estimate"] == pytest.approx(expected)


def test_a_search_has_no_scaling_efficiency(tmp_path):
    costs = made_trials.Costs(budget_mib=2000)  # one device is enough, however many it may use
    lines = [
        made_trials.make_trial(tmp_path, Cell("auto_expand", g, **ONE), 1, warm_rounds=1, costs=costs)
        for g in (1, 2)
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    assert set(found["trials"]["gpus_used"]) == {1}
    assert not found["summary"]["metric"].str.startswith("efficiency").any()


def test_the_baseline_is_where_it_was_run_with_the_fewest_devices(tmp_path):
    spread = {"start": "zygote", "engine": "eager", "agents": 2, "variant": "two"}
    lines = [
        made_trials.make_trial(
            tmp_path, Cell(mode, 2, **spread, options={"devices_per_copy": 2}), 1, warm_rounds=1
        )
        for mode in ("sequential", "shared")
    ]
    found = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    row = metric(found["summary"], "speedup_warm", mode="shared")
    cold = found["trials"].set_index("mode")["warm_s"]
    assert row["estimate"] == pytest.approx(cold["sequential"] / cold["shared"])


def test_energy_is_known_where_every_gpu_told_its_own(tmp_path):
    cell = Cell("parallel", 2, **ONE)
    line = made_trials.make_trial(tmp_path, cell, 1, warm_rounds=1, costs=made_trials.Costs(gpu=True))
    trial = tables.read_trial(line)
    devices = [
        {
            "used_peak_mib": 1.0,
            "in_use": True,
            "util_mean_pct": 50.0,
            "energy_j": energy,
            "bandwidth_gb_s": None,
        }
        for energy in (900.0, 20.0)
    ]
    whole, lost = (
        tables.trial_row(trial, told, tables.tax_of(trial))["energy_j"]
        for told in (devices, [devices[0], {**devices[1], "energy_j": None}])
    )
    assert (whole, lost) == (920.0, None)


def test_efficiency_is_against_the_fewest_gpus_that_worked(whole):
    row = metric(whole["summary"], "efficiency_warm", mode="parallel", start="zygote")
    assert (row["gpus"], row["baseline"]) == (8, "4 GPUs")
    assert row["estimate"] == pytest.approx(0.5, rel=0.05)


def test_the_study_has_a_row_of_its_trials_wall_time_against_their_sum(whole):
    (row,) = whole["study"].to_dict("records")
    assert (row["host"], row["trials"], row["cells"]) == ("box", len(whole["trials"]), 8)
    assert (row["repeats_min"], row["repeats_max"], row["out_of_order"]) == (3, 3, 0)
    # Made up: a trial each minute, of 45 s, half a second of it spent waiting for others.
    assert row["wall_s"] == 60 * (row["trials"] - 1) + 45
    assert row["bound_s"] == 44.5 * row["trials"]


def test_start_states_are_never_pooled(whole):
    starts = whole["summary"].query("mode == 'parallel' and gpus == 8 and metric == 'cold_s'")
    assert sorted(starts["start"]) == ["process", "zygote"]
    assert list(starts["trials"]) == [3, 3]


def test_trials_of_different_hosts_are_neither_pooled_nor_paired(tmp_path):
    lines = [
        made_trials.make_trial(tmp_path, Cell(mode, 1, **ONE), repeat, host=host)
        for repeat, elsewhere in ((1, "east"), (2, "west"))
        for mode, host in (("sequential", "east"), ("shared", elsewhere))
    ]
    summary = summary_of(lines, tmp_path)
    assert len(summary.query("mode == 'shared' and metric == 'cold_s'")) == 2
    (ratio,) = summary.query("metric == 'speedup_cold'").to_dict("records")
    assert (ratio["host"], ratio["n"]) == ("east", 1)


def test_a_manifest_that_lists_a_trial_twice_is_refused(tmp_path):
    line = made_trials.make_trial(tmp_path, Cell("shared", 1, **ONE), 1)
    with pytest.raises(tables.TableError, match=r"lists a trial twice: shared__.*r1 \(2 times\)"):
        tables.read_manifest(made_trials.write_manifest(tmp_path, [line, line]))


def test_rows_describe_themselves(whole):
    for name in ("trials", "rounds", "agents", "workers", "devices", "attempts", "samples", "outputs"):
        assert list(whole[name].columns[: len(tables.IDENTITY)]) == tables.IDENTITY, name


def test_skipped_cells_keep_their_reason(whole):
    assert list(whole["skipped"]["reason"]) == ["runs on one GPU, not on 2"]


def test_every_trial_row_agrees_with_its_rounds(whole):
    ends = whole["rounds"].query("round == 0").groupby("trial_id")
    makespans = ends["ended_at_s"].max() - ends["started_at_s"].min()
    cold = whole["trials"].set_index("trial_id")["cold_s"]
    pd.testing.assert_series_equal(makespans.loc[cold.index], cold, check_names=False)


# What is compared across trials --------------------------------------------------------------------


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Replays, an agent alone, a server."""
    root = tmp_path_factory.mktemp("clients")
    lines = made_trials.client_study(root / "trials")
    built = tables.build(tables.read_manifest(made_trials.write_manifest(root, lines)))
    tables.write(built, root / "tables")
    return tables.load(root / "tables")


def test_every_trial_has_its_warm_rounds_beside_its_replays(clients):
    tax = clients["tax"].set_index("trial_id")
    assert set(tax.index) == set(clients["trials"]["trial_id"])
    known = tax[tax["mode"] != "cooperative"]
    assert (known["replays"] == 2).all() and (known["note"] == "").all()
    pd.testing.assert_series_equal(
        known["warm_s"] / known["replay_s"], known["warm_over_replay"], check_names=False
    )
    # Made: 60 ms of framework in a step, 4 ms in its replay; 180 ids in a prompt, 100 of them the task's.
    sequential = tax.query("mode == 'sequential'")
    assert sequential["added_ms_per_step"].mean() == pytest.approx(56, abs=15)
    assert set(known["added_tokens_per_step"]) == {80.0}


def test_a_trial_without_replays_says_so_and_has_no_ratio(clients):
    row = clients["tax"].query("mode == 'cooperative'").iloc[0]
    assert row["note"] == "not measured: replays were off (config key replay)"
    assert row[["replay_s", "warm_over_replay", "added_s"]].isna().all()


def test_the_ratio_of_warm_to_replay_is_estimated_over_trials_on_the_log(clients):
    row = metric(clients["summary"], "warm_over_replay", mode="served")
    ratios = clients["tax"].query("mode == 'served'")["warm_over_replay"]
    assert row["estimate"] == pytest.approx(ratios.prod() ** (1 / 3))
    assert row["low"] < row["estimate"] < row["high"]
    assert row["n"] == 3


def test_every_step_has_a_row_of_what_was_added_to_it(clients):
    steps = clients["tax_steps"].query("mode == 'shared' and start == 'process' and repeat == 1")
    assert list(steps["step"]) == ["agent0", "agent1", "agent2"]
    assert list(steps["added_tokens"]) == [80.0] * 3
    assert list(steps["added_calls"]) == [0.0] * 3


def test_agents_are_slowed_by_what_they_share_against_the_agent_alone(clients):
    beside = clients["interference"].query("agents > 1 and start == 'process' and engine == 'eager'")
    found = {(r["mode"], r["gpus"]): r["relation"] for r in beside.to_dict("records")}
    assert found == {("parallel", 1): "device", ("parallel", 3): "host", ("sequential", 1): "none",
                     ("shared", 1): "worker", ("cooperative", 1): "none"}  # fmt: skip
    assert set(beside.dropna(subset=["slowdown"])["alone"]) == {"Parallel, 1 slot, 1 agent"}
    row = metric(clients["summary"], "slowdown_worker", mode="shared", start="process")
    # Made: three agents on a worker take 1 + 0.7 · 2 times as long.
    assert row["estimate"] == pytest.approx(2.4, rel=0.05)
    assert (row["n"], row["baseline"]) == (3, "Parallel, 1 slot, 1 agent")


def test_what_no_agent_alone_was_measured_for_says_so(clients):
    row = metric(clients["summary"], "slowdown_worker", mode="served")
    assert pd.isna(row["estimate"])
    assert "no agent was measured alone (engine vllm, process start" in row["note"]


def test_a_fresh_worker_for_each_call_is_repaid_by_the_first_that_stays(clients):
    rows = clients["breakeven"].query("comparison == 'resident'")
    assert sorted(zip(rows["b_mode"], rows["agents"], rows["gpus"], strict=True)) == [
        ("parallel", 1, 1), ("parallel", 3, 1), ("parallel", 3, 3), ("sequential", 3, 1)
    ]  # fmt: skip
    sequential = rows.query("b_mode == 'sequential'").iloc[0]
    assert sequential["calls"] == pytest.approx(1.0, abs=0.05)
    assert sequential["low"] <= sequential["calls"] <= sequential["high"]
    crew = rows.query("b_mode == 'parallel' and agents == 3")
    assert list(crew["calls"]) == pytest.approx([3.0, 3.0], abs=0.1)


def test_a_server_is_compared_with_the_modes_of_processes_that_do_the_same_work(clients):
    rows = clients["breakeven"].query("comparison == 'runner'")
    assert sorted(rows["a_mode"]) == ["parallel", "sequential", "shared"]
    assert set(rows["b_engine"]) == {"vllm"}
    assert len(clients["breakeven_repeats"].query("comparison == 'runner'")) == 9


def test_compiling_is_compared_with_eager_and_the_zygote_is_named(tmp_path):
    lines = made_trials.gpu_study(tmp_path / "trials")
    built = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, lines)))
    rows = built["breakeven"].query("comparison == 'engine'")
    assert set(zip(rows["a_engine"], rows["b_engine"], strict=True)) == {("eager", "compiled")}
    disk = rows.query("b_start == 'disk'").iloc[0]
    # Made: 41 s of compiling for 25 - 7.5 ms less a token, 47 tokens: 41 / (47 · 0.0175) rounds of 8 calls.
    assert disk["calls"] == pytest.approx(8 * 41 / (47 * 0.0175), rel=0.1)
    assert disk["b_compile_cache"] == "empty"
    assert pd.isna(disk["zygote_s"])
    assert set(rows.query("b_start == 'zygote'")["zygote_s"]) == {5.5}


def test_servers_have_a_row_of_what_they_said(clients):
    rows = clients["serving"]
    assert list(rows["worker"]) == ["server0"] * 3
    assert list(rows["prefix_hit_pct"]) == [50.0] * 3
    assert list(rows["running_peak"]) == [3.0] * 3


def test_a_study_with_nothing_to_compare_has_the_tables_with_their_types(study, tmp_path, clients):
    tables.write(tables.build(tables.read_manifest(study)), tmp_path / "tables")
    loaded = tables.load(tmp_path / "tables")
    for name in ("tax", "tax_steps", "serving", "interference", "breakeven", "breakeven_repeats"):
        assert list(loaded[name].dtypes) == list(clients[name].dtypes), name


# Text ----------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path):
    """A trial whose agents wrote a formula, control characters, a surrogate and a megabyte of one line."""
    cell = Cell("shared", 1, agents=4, engine="eager", start="zygote")
    what, who = made_trials.spec(cell, 1), made_trials.identity(cell, 1)
    texts = {
        "agent0": "=HYPERLINK(1)",
        "agent1": "a\x00b\x1b[31mc\u202ed\ud800e",
        "agent2": "x" * 1_000_000,
    }
    rows = {
        "rounds.csv": [a_round(0, 0.0, 2.0, status=Status.ERROR)],
        "agents.csv": [agent(0, name, 0.0, 1.0) for name in texts]
        + [agent(0, "agent3", 0.0, 1.0, status=Status.ERROR, error="@SUM(1)\n" + "y" * 1_000_000)],
    }
    line = made_trials.write_trial(tmp_path, what, who, rows, texts=texts)
    built = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, [line])))
    tables.write(built, tmp_path / "tables")
    return built, tmp_path / "tables"


def test_text_in_csv_cannot_become_a_formula(hostile):
    _, out = hostile
    with open(out / "outputs.csv", newline="") as file:
        assert next(csv.DictReader(file))["text"] == "'=HYPERLINK(1)"
    with open(out / "agents.csv", newline="") as file:
        assert list(csv.DictReader(file))[3]["error"].startswith("'@SUM(1)")


def test_control_characters_are_gone(hostile):
    built, _ = hostile
    assert list(built["outputs"]["text"])[1] == "ab[31mcde"


def test_a_megabyte_of_one_line_is_cut_and_its_length_told(hostile):
    built, out = hostile
    assert list(built["outputs"]["characters"])[2] == 1_000_000
    assert built["outputs"]["text"].str.len().max() < 400
    assert built["agents"]["error"].str.len().max() < 600
    assert sum(f.stat().st_size for f in out.iterdir()) < 500_000


def test_negative_numbers_are_left_alone(hostile):
    built, out = hostile
    tables.write({**built, "numbers": pd.DataFrame({"x": [-1.5]})}, out)
    assert (out / "numbers.csv").read_text().split() == ['"x"', "-1.5"]


def test_what_is_written_is_what_is_loaded(whole, tmp_path):
    tables.write(whole, tmp_path)
    loaded = tables.load(tmp_path)
    assert {name: len(frame) for name, frame in loaded.items()} == {n: len(f) for n, f in whole.items()}
    for name, frame in loaded.items():
        with open(tmp_path / f"{name}.csv", newline="") as file:
            assert next(csv.reader(file)) == list(frame.columns)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(tables.TableError, match="trials.parquet: missing; run scripts/tables.py first"):
        tables.load(tmp_path)


# What is shown over time ---------------------------------------------------------------------------


def test_each_mode_shows_the_trial_with_the_median_cold_makespan(whole):
    shown = whole["samples"].drop_duplicates("trial_id")
    assert sorted(shown["mode"]) == sorted(set(whole["trials"]["mode"]))
    trials = whole["trials"].query("mode == 'sequential'").sort_values("cold_s")
    assert trials.iloc[1]["trial_id"] in set(shown["trial_id"])


def test_few_samples_stand_for_many_and_keep_the_peak(tmp_path):
    cell = Cell("sequential", 1, **ONE)
    rows = {
        "rounds.csv": [a_round(0, 0.0, 100.0)],
        "agents.csv": [agent(0, "agent0", 0.0, 100.0)],
        "gpu.csv": [sample(t / 100, 0, 60.0 if t == 5001 else 5.0, 10.0) for t in range(10_000)],
    }
    line = made_trials.write_trial(tmp_path, made_trials.spec(cell, 1), made_trials.identity(cell, 1), rows)
    shown = tables.build(tables.read_manifest(made_trials.write_manifest(tmp_path, [line])))["samples"]
    assert len(shown) <= tables.shown.SAMPLES_PER_DEVICE
    assert shown["used_mib"].max() == 60.0
