"""Certificates, the frontier of what fits, and what a workflow costs: from trials, with their evidence."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import made_trials
from crewbench import capacity, certificates, feasibility, metrics, stats, tables
from crewbench.certificates import AT_MOST, CERTIFIED, MORE_THAN, SIMULATED, UNSETTLED
from crewbench.checkpoint.manifest import Manifest
from crewbench.records import Status
from crewbench.report import fits
from crewbench.trial import Cell

ONE = {"agents": 4, "engine": "eager", "start": "zygote"}
GPU = made_trials.Costs(gpu=True, copy_mib=700.0, budget_mib=1500.0)
"""Two copies fit a GPU, three do not."""

PARALLEL = [Cell("parallel", g, **ONE) for g in (1, 2, 4)]


def model(directory: Path, weights_mib: float) -> Path:
    """The manifest of a checkpoint of that size: 128 KiB of KV cache a token, 32,768 positions."""
    sizes = {"num_hidden_layers": 32, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None}
    directory.mkdir(parents=True)
    Manifest(
        model_id="made",
        kind="local",
        path=".",
        sha256="a" * 64,
        files=(),
        parameters=int(weights_mib * 2**18),
        weights_bytes=int(weights_mib * 2**20),
        dtype="float32",
        architecture={**sizes, "hidden_size": 4096, "vocab_size": 32768, "max_position_embeddings": 32768},
        random_weights=True,
    ).write(directory)
    return directory


def built(
    root: Path, lines: list[dict[str, str]], weights_mib: float | None = None
) -> dict[str, pd.DataFrame]:
    path = made_trials.write_manifest(root, lines)
    if weights_mib is not None:
        data = json.loads(path.read_text())
        data["model"]["dir"] = str(model(root / "models/made", weights_mib))
        path.write_text(json.dumps(data))
    return tables.build(tables.read_manifest(path))


def study(root: Path, cells: list[Cell], repeats: int = 2, costs=GPU, weights_mib=None, fail=None):
    lines = [
        made_trials.make_trial(
            root / "trials", cell, repeat, warm_rounds=1, costs=costs, fail=fail if repeat == 1 else None
        )
        for repeat in range(1, repeats + 1)
        for cell in cells
    ]
    return built(root, lines, weights_mib)


# Certificates -------------------------------------------------------------------------------------


def test_the_fewest_devices_are_certified_by_those_that_ran_out_of_memory(tmp_path):
    (row,) = study(tmp_path, PARALLEL)["certificates"].to_dict("records")
    assert (row["outcome"], row["gpus"], row["worked"], row["trials"]) == (CERTIFIED, 2, 2, 2)
    assert (row["fewer_gpus"], row["fewer_failed"], row["fewer_trials"]) == (1, 2, 2)
    assert row["evidence"].startswith("asked for 700 MiB, 100 MiB free; worker0: 700.0 MiB")
    assert row["memory_mib"] == 1500


def test_a_search_is_certified_by_its_own_attempts(tmp_path):
    (row,) = study(tmp_path, [Cell("auto_expand", 4, **ONE)], repeats=3)["certificates"].to_dict("records")
    assert (row["outcome"], row["gpus"], row["worked"], row["fewer_failed"]) == (CERTIFIED, 2, 3, 3)
    assert "700.0 MiB" in row["evidence"]


def test_an_out_of_memory_on_another_host_is_evidence_too(tmp_path):
    found = built(tmp_path, [made_trials.given_up(tmp_path, hosts=("near", "far"))])
    assert (set(found["ooms"]["host"]), set(found["trials"]["host"])) == ({"near"}, {"far"})
    rows = (found[name].to_dict("records") for name in ("trials", "attempts", "ooms"))
    ((_, by_gpus),) = certificates.seen(*rows).items()
    assert by_gpus[1].too_few and by_gpus[2].fits
    assert by_gpus[1].evidence == "asked for 100 MiB, 20 MiB free; worker0: 500 MiB"
    (memory,) = found["constraints"].query("constraint == 'memory'").to_dict("records")
    assert memory["evidence"].startswith(
        "out of memory in 1 of 1 trial, the fullest slot would need 1,000 of"
    )


def test_without_the_next_fewer_devices_it_is_an_upper_bound(tmp_path):
    (row,) = study(tmp_path, PARALLEL[2:])["certificates"].to_dict("records")
    assert (row["outcome"], row["gpus"], row["note"]) == (AT_MOST, 4, "3 was not tried")
    fits_row = fits.certificates({"certificates": pd.DataFrame([row])}, "gpu")[0]
    assert fits_row["devices"] == "at most 4 GPUs"


def test_where_nothing_fits_more_are_needed(tmp_path):
    (row,) = study(tmp_path, PARALLEL[:1])["certificates"].to_dict("records")
    assert (row["outcome"], row["gpus"], row["worked"]) == (MORE_THAN, 1, 0)
    assert row["evidence"]


def test_a_mode_that_can_be_on_no_fewer_needs_no_evidence(tmp_path):
    found = study(tmp_path, [Cell("shared", 1, **ONE)])
    (row,) = found["certificates"].to_dict("records")
    assert (row["outcome"], row["gpus"]) == (CERTIFIED, 1) and pd.isna(row["fewer_gpus"])
    assert fits.certificates(found, "gpu")[0]["why"] == "every trial worked, and the mode can be on no fewer"


def test_a_timeout_on_fewer_devices_is_no_evidence_about_memory(tmp_path):
    slow = (0, "agent1", Status.TIMEOUT, "too slow")
    lines = [
        made_trials.make_trial(tmp_path, Cell("parallel", g, **ONE), 1, costs=GPU, fail=f)
        for g, f in ((2, slow), (3, None))
    ]
    (row,) = built(tmp_path, lines)["certificates"].to_dict("records")
    assert (row["outcome"], row["gpus"], row["note"]) == (UNSETTLED, 3, "on 2: 1 of 1 timed out")


def test_one_trial_of_many_that_failed_is_not_all_of_them(tmp_path):
    failing = (0, "agent1", Status.ERROR, "agent error")
    (row,) = study(tmp_path, [Cell("shared", 1, **ONE)], fail=failing)["certificates"].to_dict("records")
    assert (row["outcome"], row["note"]) == (UNSETTLED, "1 of 2 failed, 1 of 2 worked")


def test_a_trial_that_was_refused_its_start_counts_where_it_would_have_run():
    trial = {
        **dict.fromkeys(certificates.GROUP, "x"),
        "gpus": 2,
        "trial_id": "t",
        "host": "x",
        "status": "skipped",
    }
    attempt = {"trial_id": "t", "host": "x", "attempt": 1, "gpus_used": 0, "status": "skipped", "last": True}
    ((_, by_gpus),) = certificates.seen([trial], [attempt], []).items()
    assert by_gpus[2].statuses == ["skipped"] and not by_gpus[2].too_few


def test_simulated_budgets_certify_nothing_and_judge_no_prediction(tmp_path):
    slots = made_trials.Costs(copy_mib=700.0, budget_mib=1500.0)
    found = study(tmp_path, PARALLEL, costs=slots, weights_mib=10.0)
    (row,) = found["certificates"].to_dict("records")
    assert row["outcome"] == SIMULATED and pd.isna(row["gpus"]) and pd.isna(row["worked"])
    assert set(found["feasibility"]["outcome"]) == {feasibility.SIMULATED}
    assert (fits.simulated(found), fits.score(found), fits.feasibility(found, "slot")) == (True, "", [])


def test_devices_per_copy_skip_numbers_that_the_mode_cannot_be_on():
    group = {"mode": "parallel", "agents": 4, "engine": "eager", "start": "zygote", "variant": "two"}
    assert certificates.fewer(group, 4, {"devices_per_copy": 2}) == 2
    assert certificates.fewer(group, 4, {}) == 3
    assert certificates.fewer({**group, "mode": "gone"}, 4, {}) is None


def test_the_chance_to_fail_after_trials_that_all_worked_by_hand():
    assert metrics.failure_at_most_pct(1) == pytest.approx(95.0)
    assert metrics.failure_at_most_pct(10) == pytest.approx(25.887, abs=1e-3)  # 1 - 0.05^0.1


# The frontier -------------------------------------------------------------------------------------


def points(found: dict[str, pd.DataFrame]) -> dict[tuple, dict]:
    return {(p["agents"], p["gpus"], p["context_tokens"]): p for p in found["feasibility"].to_dict("records")}


def test_points_are_measured_beside_what_was_predicted_and_others_are_predicted(tmp_path):
    # A copy: 190 MiB, 500 of context, 228 tokens at 256 KiB (float32) = 57 MiB.
    found = study(tmp_path, [PARALLEL[0], PARALLEL[2]], weights_mib=190.0)
    at = points(found)
    assert {k for k, p in at.items() if p["outcome"] == feasibility.MEASURED} == {(4, 1, 228), (4, 4, 228)}
    assert (at[4, 1, 228]["fits"], at[4, 1, 228]["predicted_fits"]) == ("no", "no")
    assert at[4, 1, 228]["predicted_peak_mib"] == pytest.approx(4 * (190 + 500 + 57))
    assert (at[4, 4, 228]["fits"], at[4, 4, 228]["peak_mib"]) == ("yes", 700.0)
    assert (at[4, 2, 228]["outcome"], at[4, 2, 228]["fits"]) == (feasibility.PREDICTED, "yes")
    # 16,384 tokens take 4 GiB.
    assert at[4, 4, 16384]["predicted_peak_mib"] == pytest.approx(190 + 500 + 4096)
    assert at[4, 4, 16384]["fits"] == "no"
    assert fits.score(found) == "2 of 2 measured points came out as predicted."


def test_servers_that_reserve_their_memory_prove_no_prediction(tmp_path):
    server = Cell("served", 1, 4, "vllm", "process")
    found = study(tmp_path / "both", [*PARALLEL[:1], server], weights_mib=100.0)
    said = "1 of 1 measured point came out as predicted, without servers, which reserve what they are given."
    assert fits.score(found) == said
    assert fits.score(study(tmp_path / "server", [server], weights_mib=100.0)) == ""


def test_a_prediction_that_trials_contradict_is_refuted(tmp_path):
    found = study(tmp_path, PARALLEL[:2], weights_mib=500.0)  # predicted: 2 · 1,057 MiB on two GPUs
    at = points(found)
    assert (at[4, 2, 228]["outcome"], at[4, 2, 228]["fits"]) == (feasibility.REFUTED, "yes")
    assert at[4, 1, 228]["outcome"] == feasibility.MEASURED
    assert fits.score(found) == "1 of 2 measured points came out as predicted."
    (row,) = [r for r in fits.feasibility(found, "gpu") if r["context"] == "228"]
    assert row["points"][2] == ("fits, refuted the prediction", "2 of 2 worked, 1,400 MiB, predicted 2,114")


def test_what_never_ran_neither_fits_at_times_nor_not():
    group = dict.fromkeys(certificates.GROUP, "") | {"mode": "parallel", "agents": 2, "engine": "eager"}
    said = [{**group, "gpus": 1, "trial_id": f"t{n}", "status": "error", "repeat": n} for n in (1, 2, 3)]
    trials = [{**t, "peak_mib": None, "gpus_used": None, "attempts": 1} for t in said]
    attempts = [{**t, "attempt": 1, "gpus_used": 1, "last": True} for t in said]
    ground = {tuple(group.values()): feasibility.Ground(100, 80_000.0, "bfloat16", "gpu", "Made GPU")}
    (point,) = feasibility.points(trials, attempts, ground, {}, None, 1)
    assert (point["fits"], point["worked"]) == (feasibility.NOT_RUN, 0)
    told = fits._point({**point, "peak_mib": float("nan"), "predicted_peak_mib": float("nan")})
    assert told == ("not settled, none ran", "0 of 3 worked")


def test_what_a_search_gave_up_is_not_the_peak_of_where_it_came_to_rest(tmp_path):
    found = study(tmp_path, [Cell("auto_expand", 4, **ONE), Cell("parallel", 2, **ONE)])["feasibility"]
    peaks = found.query("outcome == 'measured' and gpus == 2").set_index("mode")["peak_mib"]
    assert peaks["parallel"] == pytest.approx(1400) and pd.isna(peaks["auto_expand"])


def test_a_number_of_devices_that_cannot_be_is_not_asked_for():
    group = {"mode": "actors", "agents": 8, "engine": "eager", "start": "process", "variant": "two"}
    assert certificates.fewer(group, 4, {"hosts": 2, "ray_address": "auto"}) == 2
    assert certificates.fewer({**group, "engine": "of another version"}, 4, {}) is None


def test_without_the_models_sizes_points_are_measured_alone(tmp_path):
    found = study(tmp_path, PARALLEL[:2])
    assert set(found["feasibility"]["outcome"]) == {feasibility.MEASURED}
    assert found["feasibility"]["predicted_peak_mib"].isna().all()
    assert fits.score(found) == ""


def test_every_crew_of_the_study_is_predicted_for_every_mode_once(tmp_path):
    crews = [Cell("shared", 1, **ONE), Cell("parallel", 2, **{**ONE, "agents": 2})]
    found = study(tmp_path, crews, repeats=1, weights_mib=100.0)["feasibility"]
    where = ["mode", "agents", "gpus", "context_tokens"]
    assert not found.duplicated(where).any()
    assert set(found[found["mode"] == "shared"]["agents"]) == {2, 4}
    assert set(found[found["mode"] == "parallel"]["agents"]) == {2, 4}
    assert set(found[found["mode"] == "shared"]["gpus"]) == {1}, "the mode runs on one GPU"


# How many agents fit ------------------------------------------------------------------------------


def most(found: dict[str, pd.DataFrame], mode: str = "parallel") -> dict[tuple[int, int], int]:
    rows = found["capacity"].query(f"mode == '{mode}'").to_dict("records")
    return {(r["gpus"], r["context_tokens"]): r["most_agents"] for r in rows}


def test_the_most_agents_that_fit_by_hand(tmp_path):
    # A copy of 190 MiB and 500 of context; of 1,500 MiB 810 are left, and a token takes 256 KiB.
    found = study(tmp_path, [PARALLEL[0], PARALLEL[2]], weights_mib=190.0)
    assert most(found) == {
        **{(gpus, 228): 2 * gpus for gpus in (1, 2, 3, 4)},
        **{(gpus, longer): 0 for gpus in (1, 2, 3, 4) for longer in (4096, 16384, 32768)},
    }
    assert set(found["capacity"]["measured_over_predicted"]) == {1.0}
    one, _, _, four = fits.capacity(found, "gpu")
    assert (one["name"], one["measured"], one["here"]) == ("Parallel, 1 GPU", "4 do not", ("2", "228 tokens"))
    assert (four["name"], four["measured"], four["here"]) == (
        "Parallel, 4 GPUs",
        "4 fit",
        ("8", "228 tokens"),
    )
    assert four["longer"] == dict.fromkeys((4096, 16384, 32768), ("none", ""))


def test_what_measured_peaks_have_over_the_prediction_is_added_to_it(tmp_path):
    # Predicted 100 + 500 + 57 = 657 MiB a copy, of which three fit into 2,000; measured were 700.
    found = study(tmp_path, PARALLEL[1:2], costs=replace(GPU, budget_mib=2000.0), weights_mib=100.0)
    assert found["capacity"]["measured_over_predicted"].iloc[0] == pytest.approx(700 / 657)
    assert (most(found)[1, 228], most(found)[2, 228]) == (2, 4)


def test_modes_differ_in_how_many_agents_they_have_room_for(tmp_path):
    cells = [Cell(mode, 1, **ONE) for mode in ("sequential", "shared", "auto_expand")]
    found = study(tmp_path, [*cells, PARALLEL[1]], weights_mib=190.0)
    assert most(found, "sequential")[1, 228] == capacity.AGENTS_MAX
    # The copy and its context leave 810 MiB for sequences of 57.
    assert most(found, "shared") == {(1, 228): 14, **dict.fromkeys([(1, n) for n in (4096, 16384, 32768)], 0)}
    assert most(found, "auto_expand") == {}, "it ends as another mode"
    rows = {row["name"]: row for row in fits.capacity(found, "gpu")}
    assert list(rows) == ["Parallel, 1 GPU", "Parallel, 2 GPUs", "Sequential, 1 GPU", "Shared, 1 GPU"]
    assert rows["Sequential, 1 GPU"]["here"][0] == "256 or more"


def test_what_measured_crews_contradict_is_marked(tmp_path):
    found = study(tmp_path, PARALLEL[:2], weights_mib=500.0)  # predicted: 1,057 MiB a copy, measured 700
    one, two = fits.capacity(found, "gpu")
    assert (one["measured"], one["here"][0]) == ("4 do not", "1")
    assert (two["measured"], two["here"][0]) == ("4 fit", "2, refuted")


@pytest.mark.parametrize(
    ("fit", "too_many", "said", "marked"),
    [
        (None, None, "–", ""),
        (9, 12, "9 fit, 12 do not", ""),
        (10, None, "10 fit", ", refuted"),
        (None, 9, "9 do not", ", refuted"),
        (4, 4, "4 fit at times", ""),
        (8, 4, "4 to 8 fit at times", ""),
    ],
)
def test_crews_that_fit_or_do_not_in_words(fit, too_many, said, marked):
    row = pd.Series({"fit_agents": fit, "too_many_agents": too_many, "most_agents": 9}, dtype=float).to_dict()
    assert (fits._measured_agents(row), fits._refuted(row)) == (said, marked)


def test_a_crew_that_fits_at_times_counts_on_both_sides(tmp_path):
    found = study(tmp_path, PARALLEL[1:2], weights_mib=190.0)
    (point,) = (p for p in found["feasibility"].to_dict("records") if p["outcome"] == feasibility.MEASURED)
    key = tuple(point[name] for name in certificates.GROUP)
    ground = {key: feasibility.Ground(228, 1500.0, "float32", "gpu", "Made GPU")}
    sizes = feasibility.model_of(tmp_path / "models/made")
    point |= {"fits": feasibility.SOMETIMES}
    rows = capacity.table([point], ground, {}, sizes, devices=2)
    (row,) = (r for r in rows if r["gpus"] == 2 and r["as_measured"])
    assert (row["fit_agents"], row["too_many_agents"]) == (4, 4)


def test_gpus_of_several_hosts_have_their_row(tmp_path):
    group = dict.fromkeys(certificates.GROUP, "two") | {"mode": "actors", "engine": "eager"}
    group |= {"agents": 16, "start": "process"}
    ground = {tuple(group.values()): feasibility.Ground(100, 80_000.0, "float32", "gpu", "Made GPU")}
    seen = {"outcome": feasibility.MEASURED, "fits": "yes", "peak_mib": 700.0, "predicted_peak_mib": 700.0}
    options = {"two": {"hosts": 2, "ray_address": "auto"}}
    sizes = feasibility.model_of(model(tmp_path / "m", 190.0))
    rows = capacity.table([{**group, "gpus": 16, **seen}], ground, options, sizes, devices=8)
    assert {row["gpus"] for row in rows} == {2, 4, 6, 8, 16}
    assert [r["fit_agents"] for r in rows if r["gpus"] == 16 and r["as_measured"]] == [16]


def test_nobody_is_told_how_many_fit_where_memory_does_not_say(tmp_path):
    sizes = Manifest(**{**json.loads((model(tmp_path / "m", 100.0) / "manifest.json").read_text())})
    ground = feasibility.Ground(100, 80_000.0, "bfloat16", "gpu", "Made GPU")
    group = dict.fromkeys(certificates.GROUP, "base") | {"agents": 8, "start": "process"}

    def told(mode: str, engine: str, here=ground, of=sizes) -> int:
        key = tuple((group | {"mode": mode, "engine": engine}).values())
        return len(capacity.table([], {key: here}, {}, of, devices=1))

    assert told("parallel", "eager") == 4
    assert told("served", "vllm") == 0, "agents wait for room"
    assert told("parallel", "eager", here=replace(ground, kind="slot")) == 0
    assert told("parallel", "eager", of=None) == 0
    assert told("of another version", "eager") == told("parallel", "of another version") == 0


# What a workflow costs ----------------------------------------------------------------------------


def test_what_failed_is_charged_to_what_worked():
    spent, worked = {1: 10.0, 2: 14.0, 3: 6.0}, {1: 1.0, 2: 1.0, 3: 0.0}
    found = stats.per_success(spent, worked)
    assert (found.value, found.n) == (15.0, 3)
    assert found.low is None or found.low >= 0
    assert stats.per_success(spent, dict.fromkeys(spent, 0.0)).reason == "nothing worked"
    assert stats.per_success({}, {}).reason == "not measured"


def test_a_workflows_cost_counts_every_round_and_attempt(tmp_path):
    failing = (0, "agent1", Status.ERROR, "agent error")
    found = study(tmp_path, [Cell("auto_expand", 4, **ONE)], fail=failing)
    trials, summary = found["trials"], found["summary"].set_index("metric")
    assert list(trials["workflows_ok"]) == [1, 2], "the first trial's cold round failed, its warm one worked"
    rounds = found["rounds"]
    assert trials["gpu_s"].sum() == pytest.approx((rounds["gpus_used"] * rounds["makespan_s"]).sum())
    assert summary.loc["gpu_s_per_workflow", "estimate"] == pytest.approx(trials["gpu_s"].sum() / 3)
    assert summary.loc["cold_gpu_s_per_workflow", "estimate"] == pytest.approx(trials["cold_gpu_s"].sum())
    (row,) = fits.workflows(found, "gpu")
    assert row["worked"] == "1 of 2"
    assert row["values"][2] == ("–", "not measured")
