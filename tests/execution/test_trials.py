"""What real trials of every mode leave behind."""

import hashlib
import json

import pytest

from crewbench import modes
from crewbench.records import FILES, STAGES, columns
from crewbench.trial import Spec

EVERY_MODE = list(modes.MODES)
IN_WORKERS = [mode for mode in EVERY_MODE if mode != "served"]
FROM_A_ZYGOTE = [mode for mode in IN_WORKERS if mode != "actors"]
INDEPENDENT = ["parallel", "auto_expand", "sequential", "shared"]


def floats(row, names):
    return [float(row[n]) for n in names]


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_every_step_of_every_round_succeeds_in_the_last_attempt(results, mode):
    rows = results[mode].rows("agents")
    last = max(int(r["attempt"]) for r in rows)
    final = [r for r in rows if int(r["attempt"]) == last]
    assert {r["round"] for r in final} == {"0", "1"}
    assert {r["status"] for r in final} == {"ok"}
    assert results[mode].trial["status"] == "ok"


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_a_trials_json_vouches_for_its_files_and_names_its_spec(results, mode):
    trial = results[mode].trial
    assert set(trial["files"]) == {*FILES, "outputs.jsonl"}
    for name, digest in trial["files"].items():
        assert hashlib.sha256((results[mode].dir / name).read_bytes()).hexdigest() == digest
    assert Spec.from_dict(trial["spec"]).spec8 == trial["spec8"]


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_what_slots_do_not_have_is_empty_and_says_why(results, mode):
    trial = results[mode].trial
    assert {d["uuid"] for d in trial["devices"]} == set(trial["bandwidth_gb_s"])
    for copied in trial["bandwidth_gb_s"].values():
        assert (copied["median"], copied["why"]) == (None, "a CPU slot has no memory of its own")
    assert trial["compile_cache"]["state"] == "none"
    # All weights but the input embedding, of which a token reads one row.
    assert 0 < trial["model"]["decode_bytes"] < trial["model"]["weights_bytes"]


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_the_files_have_exactly_the_contracts_columns(results, mode):
    for name, row_type in FILES.items():
        header = (results[mode].dir / name).read_text().splitlines()[0]
        assert header.split(",") == columns(row_type)


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_the_stages_of_a_round_add_up_to_its_makespan(results, mode):
    for row in results[mode].rows("rounds"):
        stages = floats(row, [f"{s}_s" for s in STAGES])
        assert sum(stages) == pytest.approx(float(row["makespan_s"]), abs=1e-5)
        assert min(stages) >= -1e-6
        assert float(row["ended_at_s"]) - float(row["started_at_s"]) == pytest.approx(
            float(row["makespan_s"]), abs=1e-5
        )


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_a_steps_times_are_in_order_and_inside_its_round(results, mode):
    rounds = {(r["attempt"], r["round"]): r for r in results[mode].rows("rounds")}
    for row in results[mode].rows("agents"):
        if row["status"] != "ok":
            continue
        queued, started, ended = floats(row, ["queued_at_s", "started_at_s", "ended_at_s"])
        around = rounds[row["attempt"], row["round"]]
        assert float(around["started_at_s"]) <= queued <= started < ended
        assert ended <= float(around["ended_at_s"]) + 1e-5
        prefill, decode, framework = floats(row, ["prefill_s", "decode_s", "framework_s"])
        assert prefill > 0 and decode > 0 and framework > 0
        assert prefill + decode + framework == pytest.approx(ended - started, abs=1e-5)
        assert 0 < float(row["ttft_s"]) < ended - queued


@pytest.mark.parametrize("mode", IN_WORKERS)
def test_every_step_makes_the_fixed_number_of_tokens_counted_from_ids(results, mode):
    outputs = {(o["attempt"], o["round"], o["step"]): o for o in results[mode].outputs}
    for row in results[mode].rows("agents"):
        if row["status"] != "ok":
            continue
        output = outputs[int(row["attempt"]), int(row["round"]), row["step"]]
        assert row["output_tokens"] == "8" and row["llm_calls"] == "1"
        assert [len(ids) for ids in output["output_ids"]] == [8]
        assert [len(ids) for ids in output["prompt_ids"]] == [int(row["prompt_tokens"])]
        instants = output["token_at_s"][0]
        assert len(instants) == 8 and instants == sorted(instants)


@pytest.mark.parametrize("mode", IN_WORKERS)
def test_the_text_is_the_local_models_own(results, mode):
    """Greedy ids made here, straight from the checkpoint, for the prompt that the agent was given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trial = results[mode].trial
    place = results[mode].dir.parents[1] / trial["spec"]["model_dir"] / "weights"
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    output = results[mode].outputs[-1]
    prompt = torch.tensor(output["prompt_ids"])
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=8,
    )
    ids = made[0, prompt.shape[1] :].tolist()
    assert ids == output["output_ids"][0]
    assert output["text"].strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_independent_steps_get_the_same_prompt_ids_in_every_mode(results):
    prompts = {}
    for mode in INDEPENDENT:
        for output in results[mode].outputs:
            prompts.setdefault(output["agent"], set()).add(json.dumps(output["prompt_ids"]))
    assert len(prompts) == 8
    assert {len(seen) for seen in prompts.values()} == {1}


def test_a_prompt_starts_with_one_bos_and_ends_open_for_the_answer(results):
    from transformers import AutoTokenizer

    trial = results["shared"].trial
    place = results["shared"].dir.parents[1] / trial["spec"]["model_dir"] / "weights"
    tokenizer = AutoTokenizer.from_pretrained(place)
    for output in results["shared"].outputs:
        ids = output["prompt_ids"][0]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        assert "[/INST]" in tokenizer.decode(ids[-12:])


def test_a_chains_steps_read_what_the_steps_before_them_wrote(results):
    tokens = [int(r["prompt_tokens"]) for r in results["cooperative"].rows("agents") if r["round"] == "1"]
    assert tokens == sorted(tokens) and len(set(tokens)) == 3


def test_a_leader_plans_first_and_summarises_last(results):
    rows = [r for r in results["hierarchical"].rows("agents") if r["round"] == "1"]
    order = [r["step"] for r in sorted(rows, key=lambda r: float(r["started_at_s"]))]
    assert order[0] == "plan" and order[-1] == "summary"
    workers = {r["step"]: r["worker"] for r in rows}
    assert workers == {"plan": "worker0", "agent1": "worker1", "agent2": "worker0", "summary": "worker0"}


def test_parallel_workers_each_load_a_copy_on_their_own_device(results):
    rows = results["parallel"].rows("workers")
    assert [r["device_uuid"] for r in rows] == ["slot-0", "slot-1", "slot-2"]
    assert len({r["pid"] for r in rows}) == 3


def test_sequential_renews_its_worker_for_each_step_and_keeps_the_last_one_warm(results):
    workers = results["sequential"].rows("workers")
    assert [r["worker_life"] for r in workers] == ["0", "1", "2"]
    for before, after in zip(workers, workers[1:], strict=False):
        assert float(before["stopped_at_s"]) <= float(after["spawned_at_s"])
    agents = results["sequential"].rows("agents")
    assert [r["worker_life"] for r in agents if r["round"] == "0"] == ["0", "1", "2"]
    assert {r["worker_life"] for r in agents if r["round"] == "1"} == {"2"}


def test_auto_expand_keeps_its_failed_attempts_as_rows_with_their_cost(results):
    rounds = results["auto_expand"].rows("rounds")
    assert [(r["attempt"], r["round"], r["gpus_used"], r["status"]) for r in rounds] == [
        ("1", "0", "1", "oom"),
        ("2", "0", "2", "oom"),
        ("3", "0", "3", "ok"),
        ("3", "1", "3", "ok"),
    ]
    for before, after in zip(rounds, rounds[1:], strict=False):
        assert float(before["ended_at_s"]) <= float(after["started_at_s"])
    assert all(float(r["makespan_s"]) > 0 for r in rounds)
    assert all(float(r["stop_s"]) > 0 for r in rounds[:2])
    failed = [r for r in results["auto_expand"].rows("agents") if r["attempt"] == "1"]
    assert {r["status"] for r in failed} == {"oom", "cancelled"}
    assert any("simulated budget" in r["error"] for r in failed)


def test_each_out_of_memory_is_a_row_that_says_who_held_what(results):
    rows = results["auto_expand"].rows("ooms")
    workers = {(w["attempt"], w["worker"]): w for w in results["auto_expand"].rows("workers")}
    assert {r["attempt"] for r in rows} == {"1", "2"}
    for row in rows:
        worker = workers[row["attempt"], row["worker"]]
        assert worker["status"] == "oom"
        assert (row["round"], row["phase"], row["step"], row["oom_phase"]) == ("0", "cold", "", "load")
        assert (row["pid"], row["device_uuid"]) == (worker["pid"], worker["device_uuid"])
        asked, free, own, others = floats(row, ["requested_mib", "free_mib", "reserved_mib", "others_mib"])
        assert asked > free >= 0
        assert own == 0
        assert others + free == pytest.approx(56)
        held = json.loads(row["holders"])
        assert sum(held.values()) == pytest.approx(others)
        near = {w["pid"] for w in workers.values() if w["device_uuid"] == row["device_uuid"]}
        assert set(held) <= near - {row["pid"]}
        assert row["held_by"].count("worker") == len(held) == 3
        assert asked < float(row["predicted_mib"]) == float(worker["predicted_mib"]) < 1.5 * asked
        assert (row["ballast_mib"], row["simulated"]) == ("", "True")


def test_a_trial_without_an_out_of_memory_has_a_header_only(results):
    assert results["sequential"].rows("ooms") == []


@pytest.mark.parametrize("mode", FROM_A_ZYGOTE)
def test_a_zygotes_workers_have_imported_before_they_are_asked_for(results, mode):
    assert results[mode].trial["zygote_s"] > 1.0
    forked = [row for row in results[mode].rows("workers") if row["import_s"]]
    assert all(float(row["import_s"]) < 1.0 for row in forked)
    # A kernel may drop pages at any time: some page out whole files that nobody has mapped.
    assert max(float(row["cached_share"]) for row in forked) > 0.8


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_the_slots_memory_is_sampled_while_the_workers_live(results, mode):
    rows = results[mode].rows("gpu")
    held = max(float(r["used_mib"]) for r in rows)
    assert held >= 15.0
    assert {r["device_index"] for r in rows} >= {r["device_index"] for r in results[mode].rows("workers")}
    assert {r["power_w"] for r in rows} == {""}
    instants = [float(r["t_at_s"]) for r in rows if r["device_index"] == "0"]
    assert instants == sorted(instants)
    rounds = results[mode].rows("rounds")
    assert instants[0] < float(rounds[0]["started_at_s"])
    assert instants[-1] > float(rounds[-1]["ended_at_s"])
