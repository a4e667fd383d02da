"""The validity script from end to end on a CPU slot: engine, adapter, sampler and trials as on a GPU.

A CPU's timings prove nothing, so only what does not depend on them is asked for.
"""

import csv
import shutil
import sys

import pytest

from made_study import ROOT, run
from validity import judge_trials


@pytest.fixture(scope="module")
def validity(results, tmp_path_factory):
    """(exit code, what was printed, the output directory), over the trials of every mode."""
    out = tmp_path_factory.mktemp("validity") / "out"
    trial = results["parallel"]
    model = trial.dir.parents[1] / trial.trial["spec"]["model_dir"]
    words = ["--model", model, "--trials", trial.dir.parent, "--out", out, "--device", "slot"]
    done = run(
        *(sys.executable, ROOT / "tests/gpu/validity.py", *words, "--tokens", "4", "--seconds", "0"),
        cwd=out.parent,
        check=False,
    )
    return done, out


def rows(out, name):
    with open(out / name, newline="") as file:
        return list(csv.DictReader(file))


def test_every_claim_has_a_verdict_and_the_exit_code_says_whether_one_is_not_met(validity):
    done, out = validity
    verdicts = rows(out, "verdicts.csv")
    assert [v["claim"] for v in verdicts] == [
        *("inference_raw", "ids_raw", "inference_benchmark", "prefill_benchmark", "decode_benchmark"),
        *("energy", "sampler", "stages", "ids_modes"),
    ], done.stderr
    assert not [v for v in verdicts if "failed" in v["note"]], done.stderr
    assert done.returncode == any(v["outcome"] == "NOT MET" for v in verdicts)
    for verdict in verdicts:
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(verdict["what"])]
        assert line.endswith(verdict["outcome"])


def test_the_adapters_ids_are_those_of_a_bare_generate_and_the_same_in_every_mode(validity, results):
    verdicts = {v["claim"]: v for v in rows(validity[1], "verdicts.csv")}
    assert verdicts["ids_raw"]["outcome"] == "met"
    assert verdicts["ids_raw"]["n"] == "12"
    assert verdicts["ids_modes"]["outcome"] == "met"
    independent = [p for p in rows(validity[1], "prompts.csv") if p["modes"].count("|")]
    alike = {"auto_expand", "parallel", "sequential", "shared"}
    assert any(alike <= set(p["modes"].split("|")) for p in independent)
    assert {p["first_difference"] for p in independent} == {""}


def test_a_slots_energy_is_not_measured_and_says_why(validity):
    (energy,) = [v for v in rows(validity[1], "verdicts.csv") if v["claim"] == "energy"]
    assert energy["outcome"] == "not measured"
    assert "needs a GPU" in energy["note"]


def test_what_was_measured_is_there_in_interleaved_order_with_the_samples_of_each_call(validity):
    measured = rows(validity[1], "measured.csv")
    times = [r for r in measured if r["part"] == "times"]
    assert {r["side"] for r in times} == {"agent", "generate", "benchmark"}
    orders = {tuple(r["side"] for r in times if r["block"] == b) for b in {r["block"] for r in times}}
    assert len(orders) == 6
    pairs = [r for r in measured if r["part"] == "sampler"]
    assert [r["side"] for r in pairs[:4]] == ["on", "off", "off", "on"]
    assert {r["samples"] for r in pairs if r["side"] == "off"} == {"0"}
    for row in measured:
        assert float(row["seconds"]) > 0
        if row["prefill_s"]:
            both = float(row["prefill_s"]) + float(row["decode_s"])
            assert both == pytest.approx(float(row["seconds"]), abs=1e-6)


def test_every_round_of_the_trials_is_listed_with_what_no_stage_explains(validity, results):
    listed = rows(validity[1], "rounds.csv")
    assert len(listed) == sum(len(result.rows("rounds")) for result in results.values())
    assert all(float(r["unexplained_pct"]) >= 0 for r in listed)


def test_the_environment_names_model_device_and_versions(validity, results):
    facts = {r["key"]: r["value"] for r in rows(validity[1], "environment.csv")}
    assert facts["model sha256"] == results["parallel"].trial["model"]["sha256"]
    assert facts["device uuid"] == "slot-0"
    assert facts["tokens output"] == "4"
    assert facts["packages torch"]


def test_an_altered_trial_is_not_judged(results, tmp_path):
    place = tmp_path / "trials"
    shutil.copytree(results["shared"].dir, place / "shared")
    assert len(judge_trials(place)[0]) == 2
    with open(place / "shared/outputs.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="altered"):
        judge_trials(place)
    with pytest.raises(ValueError, match="no trial.json"):
        judge_trials(tmp_path / "nothing")


@pytest.mark.needs("serving")
def test_a_server_is_asked_by_the_crew_and_by_its_calls_alone_for_the_same_ids(results, tmp_path):
    trial = results["parallel"]
    model = trial.dir.parents[1] / trial.trial["spec"]["model_dir"]
    out = tmp_path / "out"
    words = ["--model", model, "--out", out, "--device", "slot", "--engine", "transformers-serve"]
    done = run(
        *(sys.executable, ROOT / "tests/gpu/throughput.py", *words, "--agents", "2"),
        *("--tokens", "4", "--seconds", "0", "--pairs", "10"),
        cwd=tmp_path,
        check=False,
    )
    (verdict,) = rows(out, "verdicts.csv")
    assert verdict["claim"] == "tax" and verdict["n"] == "10" and verdict["note"] == "", done.stderr
    assert done.returncode == (verdict["outcome"] == "NOT MET")
    sides = [r["side"] for r in rows(out, "measured.csv")]
    assert sides == ["crew", "calls", "calls", "crew"] * 5
    assert all(float(r["seconds"]) > 0 for r in rows(out, "measured.csv"))
