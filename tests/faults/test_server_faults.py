"""Servers that never get ready, break off, hang or die: rows with the end of their log, and nothing left."""

import os
import re
import signal
import socket

import pytest

import toys
from crewbench import crews
from crewbench.devices import procfs
from made_study import Study
from processes import GONE_S, MARK, command, kill, marked, new_mark, wait_gone
from running import Running

# Five servers and their clients start at once, on two cores that others may use as well.
LOAD_S, STEP_S = 75.0, 12.0
WORK = {
    "good": (
        "toy",
        [
            *("answers", "answers-500", "sends-nonsense", "sends-half-nonsense", "hangs", "closes"),
            *("ends-early", "sends-an-error", "runs-out-of-memory"),
        ],
    ),
    "mortal": ("toy", ["dies", "hangs"]),
    "late": ("toy-never", ["answers"]),
    "full": ("toy-no-memory", ["answers"]),
    "broken": ("toy-exits", ["answers"]),
}


def trial_of(place, work):
    """A trial of these servers: its records, and what was left of it, which is ended."""
    mark = new_mark()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**crews.OFFLINE, MARK: mark}.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(place))
        found = toys.trial(place, work, warm_rounds=1, load_s=LOAD_S, step_s=STEP_S)
    # multiprocessing's resource tracker is this process's own, and stays as long.
    mine = [pid for pid in marked(mark) if "resource_tracker" not in command(pid)]
    left = wait_gone(mine, GONE_S)
    said = [command(pid) for pid in left]
    kill(left)
    return found, said


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    return trial_of(tmp_path_factory.mktemp("toys"), WORK)


@pytest.fixture(scope="module")
def records(trial):
    return trial[0]


def row(records, step, number=0):
    (found,) = [r for r in records.agents if r.step == step and r.round == number]
    return found


@pytest.mark.parametrize(
    "word, status, says",
    [
        ("answers-500", "error", 'the server answered 500: {"error": "no such luck"}'),
        ("sends-nonsense", "error", "what is no event of the protocol: '<html>'"),
        ("sends-half-nonsense", "error", 'what is no event of the protocol: {"choices": [null]}'),
        ("hangs", "timeout", "the step's deadline passed while the server was silent"),
        ("closes", "error", "peer closed connection"),
        ("ends-early", "error", "broke off after 1 pieces"),
        ("sends-an-error", "error", "the engine is dead"),
    ],
)
def test_a_broken_answer_is_a_status_with_the_end_of_the_servers_log(records, word, status, says):
    for number in (0, 1):
        found = row(records, f"good {word}", number)
        assert found.status == status
        assert says in found.error and "log ends:" in found.error
    # Another process passes the log on: what was asked last may not be there yet, what round 0 asked for is.
    assert "asked for" in found.error.partition("log ends:")[2]


def test_what_came_of_a_broken_answer_counts_as_what_it_was(records):
    found = row(records, "good hangs")
    assert found.llm_calls == 1 and found.ttft_s is not None
    assert found.prefill_s + found.decode_s + found.framework_s == pytest.approx(
        found.ended_at_s - found.started_at_s
    )


def test_broken_answers_leave_the_server_and_the_other_agents_alone(records):
    for number in (0, 1):
        found = row(records, "good answers", number)
        assert (found.status, found.error) == ("ok", "")
        assert (found.prompt_tokens, found.output_tokens) == (11, 3)
    (worker,) = [w for w in records.workers if w.worker == "good"]
    assert worker.status == "ok"


def test_a_servers_out_of_memory_is_an_out_of_memory_of_the_step_that_met_it(records):
    assert row(records, "good runs-out-of-memory").status == "oom"
    met = [o for o in records.ooms if o.worker == "good"]
    assert [(o.round, o.step, o.oom_phase) for o in met] == [
        (number, "good runs-out-of-memory", "decode") for number in (0, 1)
    ]
    assert {(o.requested_mib, o.free_mib, o.device_uuid) for o in met} == {(2048.0, 512.0, "slot-0")}


def test_a_server_that_dies_in_a_round_fails_its_steps_and_skips_the_later_ones(records):
    for word in ("dies", "hangs"):
        found = row(records, f"mortal {word}")
        assert found.status == "error"
        assert "log ends:" in found.error
        later = row(records, f"mortal {word}", 1)
        assert (later.status, later.error) == ("skipped", "its worker is gone since an earlier round")
    (worker,) = [w for w in records.workers if w.worker == "mortal"]
    assert worker.status == "error" and "the server was killed by SIGKILL" in worker.error
    assert "asked for" in worker.error  # all that it said has been read once it is dead


def test_a_server_that_is_never_ready_is_a_timeout_with_its_log(records):
    found = row(records, "late answers")
    assert found.status == "timeout"
    assert f"the server was not ready within {LOAD_S:g} s; its log ends: toy server loads" in found.error
    assert row(records, "late answers", 1).status == "skipped"


def test_a_server_without_memory_for_the_model_is_an_out_of_memory_while_loading(records):
    found = row(records, "full answers")
    assert found.status == "oom" and "CUDA out of memory" in found.error
    (met,) = [o for o in records.ooms if o.worker == "full"]
    assert (met.step, met.oom_phase, met.requested_mib, met.free_mib) == ("", "load", 2048.0, 512.0)


def test_a_server_that_exits_says_how_and_what_it_said(records):
    found = row(records, "broken answers")
    assert found.status == "error"
    assert "the server exited with code 1; its log ends: toy server loads\nno such option" in found.error


def test_its_metrics_until_then_are_kept_of_a_server_that_died(records):
    for name in ("good", "mortal"):
        # A reading that the server did not answer, as one may be when it dies, says nothing.
        rows = [r for r in records.servers if r.worker == name and r.running is not None]
        assert rows
        for found in rows:
            assert (found.running, found.preemptions, found.kv_used_share, found.waiting) == (
                3,
                4,
                0.25,
                None,
            )


def test_memory_is_the_weights_and_the_cache_that_was_in_use(records):
    (worker,) = [w for w in records.workers if w.worker == "good"]
    # 10 MiB of weights and a quarter of 1000 tokens at 0.01 MiB.
    assert worker.allocated_peak_mib == pytest.approx(12.5)


def test_nothing_is_left_of_servers_or_what_they_started(trial):
    assert trial[1] == []


def test_a_keeper_that_hangs_costs_no_step_and_is_said_with_its_server_of_which_nothing_is_left(tmp_path):
    records, left = trial_of(tmp_path, {"unkept": ("toy", ["stops-its-keeper"])})
    assert [(r.round, r.status) for r in records.agents] == [(0, "ok"), (1, "ok")]
    (worker,) = records.workers
    assert worker.status == "error"
    assert "the server lost its keeper (crewbench.execute.keeper did not answer within" in worker.error
    # The keeper had the readings.
    assert records.servers == [] and worker.allocated_peak_mib is None
    assert left == []


# ---------------------------------------------------------------- Transformers' own server


REPLICAS = {
    "warm_rounds": 2,
    "replay": False,
    "generation": {"output_tokens": 150},
    "variants": {"replicas": {"layout": "replicas"}},
    "runs": [
        {"mode": "served", "gpus": 4, "agents": 4, "engine": "transformers-serve", "variant": "replicas"}
    ],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def killed(tmp_path_factory, models):
    """A trial of four servers in whose first warm round one server, the keeper of another and the process
    beside a third are killed: its result, its exit code, what was left at once and at its end."""
    running = Running(
        Study(tmp_path_factory.mktemp("killed") / "study", REPLICAS, models), "server3 .*: ready"
    )
    ok = sum("round 0" in line and ": agent" in line for line in running.log)
    while ok < 4:
        running.read_until(r"round 0: server\d: agent\d ok")
        ok += 1
    beside = dict(re.findall(r"(server\d) \(pid (\d+)\): import", "".join(running.log)))
    everyone = running.all()
    servers = {name: below(int(pid), everyone) for name, pid in beside.items()}
    os.kill(servers["server0"]["server"], signal.SIGKILL)
    os.kill(servers["server1"]["keeper"], signal.SIGKILL)
    os.kill(int(beside["server2"]), signal.SIGKILL)
    gone = [pid for name in ("server0", "server1", "server2") for pid in servers[name].values()]
    running.read_until("round 1: server3: agent3 ok")
    alive = set(servers["server3"].values()) <= set(running.all())
    left = wait_gone(gone, GONE_S)
    code, survivors = running.finish()
    return running.result(), code, left, survivors, alive


def below(pid, everyone):
    """The keeper and the server of the process `pid`."""
    found = {}
    for one in everyone:
        if "execute.keeper" in command(one) and procfs.parent(one) == pid:
            found["keeper"] = one
            (found["server"],) = [other for other in everyone if procfs.parent(other) == one]
    return found


def test_a_killed_server_keeper_or_process_beside_it_is_a_row_with_the_servers_log(killed):
    result, code, *_ = killed
    assert code == 0
    rows = {r["worker"]: r for r in result.rows("workers")}
    words = {
        "server0": "the server was killed by SIGKILL",
        "server1": "the server lost its keeper",
        "server2": "worker server2 was killed by SIGKILL",
    }
    for name, says in words.items():
        assert rows[name]["status"] == "error"
        assert says in rows[name]["error"]
    for row in [r for r in result.rows("agents") if r["round"] == "1" and r["worker"] != "server3"]:
        assert row["status"] == "error"
        # A server that was ready late may have answered nothing yet but its keeper.
        assert re.search(
            r'log ends: .*"(GET /health|POST /v1/chat/completions) HTTP', row["error"], re.DOTALL
        )
    assert rows["server3"]["status"] == "ok"


def test_the_server_that_is_left_takes_the_later_rounds_steps(killed):
    rows = [r for r in killed[0].rows("agents") if r["round"] == "2"]
    assert {(r["worker"], r["status"]) for r in rows} == {("server3", "ok")} and len(rows) == 4


def test_nothing_of_a_killed_server_stays_while_its_trial_goes_on_nor_after_it(killed):
    _, _, left, survivors, alive = killed
    assert alive
    assert [command(pid) for pid in left] == []
    assert survivors == []


def test_a_taken_port_is_an_error_before_a_server_starts(tmp_path, models):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = {
            "warm_rounds": 1,
            "variants": {"port": {"port": port}},
            "runs": [{"mode": "served", "agents": 2, "engine": "transformers-serve", "variant": "port"}],
        }
        running = Running(Study(tmp_path / "study", config, models), "server0 .*: import")
        code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    result = running.result()
    assert [(r["round"], r["status"]) for r in result.rows("agents")] == [
        *(("0", "error"), ("0", "error"), ("1", "skipped"), ("1", "skipped"))
    ]
    assert f"port {port} of 127.0.0.1 is taken" in result.rows("agents")[0]["error"]
    assert "log of the server" not in result.log  # none was started
