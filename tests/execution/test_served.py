"""Agents as clients of a real model server."""

import pytest


@pytest.fixture(scope="module")
def served(results):
    return results["served"]


def test_the_server_gets_the_prompts_that_every_other_mode_gets(results, served):
    def tokens(result):
        return {r["agent"]: r["prompt_tokens"] for r in result.rows("agents") if r["round"] == "1"}

    assert tokens(served) == tokens(results["parallel"])


def test_every_answer_has_the_fixed_length_as_the_server_counts_it(served):
    assert {r["output_tokens"] for r in served.rows("agents")} == {"8"}


def test_the_servers_text_is_what_eager_writes_for_the_same_prompt(results, served):
    def texts(result):
        return {o["agent"]: o["text"] for o in result.outputs if o["round"] == 1}

    # On a CPU batching changes no more than the last bits: most greedy texts stay the same.
    same = [texts(served)[agent] == text for agent, text in texts(results["parallel"]).items()]
    assert any(same)


def test_the_servers_start_is_split_as_far_as_its_log_tells(served):
    (row,) = served.rows("workers")
    assert row["runner"] == "server"
    assert float(row["import_s"]) > float(row["load_s"]) > 0
    cold = served.rows("rounds")[0]
    assert float(cold["import_s"]) == pytest.approx(float(row["import_s"]), rel=0.01)


def test_what_the_server_was_told_is_on_record(served):
    (facts,) = served.trial["workers"].values()
    assert facts["command"][1:4] == ["-m", "crewbench.engines.transformers_start", "serve"]
    assert "127.0.0.1" in facts["command"]


def test_a_replay_makes_the_same_calls_again_without_the_framework(served):
    warm = {r["agent"]: r for r in served.rows("agents") if r["phase"] == "warm"}
    replays = served.rows("replays")
    assert [r["phase"] for r in replays] == ["replay"] * 3
    for row in replays:
        like = warm[row["agent"]]
        assert row["status"] == "ok"
        for name in ("prompt_tokens", "output_tokens", "llm_calls", "task_tokens"):
            assert row[name] == like[name]


def test_a_replay_in_a_worker_has_the_same_ids_and_so_the_same_work(results):
    warm = {r["agent"]: r for r in results["shared"].rows("agents") if r["phase"] == "warm"}
    for row in results["shared"].rows("replays"):
        assert row["prompt_tokens"] == warm[row["agent"]]["prompt_tokens"]
        assert row["output_tokens"] == "8"


def test_a_chains_replay_keeps_its_order(results):
    rows = results["cooperative"].rows("replays")
    for before, after in zip(rows, rows[1:], strict=False):
        assert float(before["ended_at_s"]) <= float(after["started_at_s"])


def test_what_the_framework_adds_to_a_prompt_is_countable(results):
    for mode in ("shared", "served"):
        for row in results[mode].rows("agents"):
            assert 0 < int(row["task_tokens"]) < int(row["prompt_tokens"])


@pytest.fixture(scope="module")
def replicas(small_study):
    """Four agents on two servers, as threads of the process beside each."""
    variant = {"layout": "replicas", "clients": "threads"}
    run = {"mode": "served", "gpus": 2, "agents": 4, "engine": "transformers-serve", "variant": "both"}
    study = small_study({"warm_rounds": 2, "variants": {"both": variant}, "runs": [run]})
    return study.run(study.trials[0])


def test_replicas_are_servers_of_their_own_each_on_its_device(replicas):
    rows = replicas.rows("workers")
    assert [(r["worker"], r["device_uuid"]) for r in rows] == [("server0", "slot-0"), ("server1", "slot-1")]
    ports = [
        facts["command"][facts["command"].index("--port") + 1] for facts in replicas.trial["workers"].values()
    ]
    assert len(set(ports)) == 2


def test_warm_rounds_use_all_replicas_alike(replicas):
    for number in ("1", "2"):
        used = [r["worker"] for r in replicas.rows("agents") if r["round"] == number]
        assert sorted(used) == ["server0", "server0", "server1", "server1"]
    assert {r["status"] for r in replicas.rows("agents")} == {"ok"}


def test_a_replica_that_is_ready_first_takes_no_more_at_once_than_it_has_room_for(replicas):
    # In the cold round the second server may come so late that the first one has answered a third agent.
    cold = [r for r in replicas.rows("agents") if r["round"] == "0"]
    assert len(cold) == 4
    for row in cold:
        at_once = [
            r
            for r in cold
            if r["worker"] == row["worker"]
            and float(r["started_at_s"]) <= float(row["started_at_s"]) < float(r["ended_at_s"])
        ]
        assert len(at_once) <= 2


def test_clients_as_threads_do_the_same_work(replicas, served):
    def work(result):
        rows = [r for r in result.rows("agents") if r["round"] == "1"]
        return {r["agent"]: (r["prompt_tokens"], r["output_tokens"], r["llm_calls"]) for r in rows}

    assert work(served).items() <= work(replicas).items()
    assert {r["status"] for r in replicas.rows("replays")} == {"ok"}


def test_each_replica_holds_its_own_copy_in_memory(replicas):
    for row in replicas.rows("workers"):
        assert 16.0 < float(row["allocated_peak_mib"]) < 17.0
