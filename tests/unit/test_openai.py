"""What a server's client makes of streams, whole, broken and nonsensical; real HTTP where it is asked."""

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

import toys
from crewbench.devices.budget import Ledger, OutOfMemory
from crewbench.engines import Call, StepTimeout
from crewbench.engines.account import CountedByDevice, SimulatedAccount
from crewbench.engines.openai import Answer, ServerError, events, tail


def answer(*told):
    made = Answer(called_s=0.0, messages=[], sent_s=1.0)
    for number, event in enumerate(told):
        made.take(event, 2.0 + number)
    return made


def piece(text="", **choice):
    return {"choices": [{"delta": {"content": text}, "finish_reason": None, **choice}]}


def end(**usage):
    return {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": usage}


USAGE = {"prompt_tokens": 5, "completion_tokens": 3}

# ---------------------------------------------------------------- events


def test_events_are_the_data_lines_until_done():
    lines = [": hello", "", 'data: {"a": 1}', "event: x", 'data:{"b": 2}', "data: [DONE]", 'data: {"c": 3}']
    assert list(events(iter(lines))) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("data", ["<html>", "[1, 2]", '"text"', "null", "{", ""])
def test_data_that_is_no_object_is_an_error_that_shows_it(data):
    with pytest.raises(ServerError, match="no event of the protocol") as raised:
        list(events(iter([f"data: {data}"])))
    assert repr(data) in str(raised.value)


# ---------------------------------------------------------------- an answer as it comes in


def test_an_answer_is_its_pieces_with_the_instant_of_each_that_holds_text():
    made = answer(piece(), piece("one"), piece(" two"), end(**USAGE)).completion()
    assert made.text == "one two"
    assert made.token_s == [3.0, 4.0]
    assert (made.prompt_s, made.prefill_s, made.decode_s) == (1.0, 2.0, 1.0)


def test_tokens_are_counted_by_the_servers_usage_where_it_shows_no_ids():
    made = answer(piece("one"), end(**USAGE)).completion()
    assert (made.prompt_tokens, made.output_tokens) == (5, 3)
    assert (made.prompt_ids, made.output_ids) == ([], [])


def test_ids_are_kept_where_the_server_shows_them_and_each_has_an_instant():
    first = {**piece(), "prompt_token_ids": [1, 7, 8]}
    made = answer(first, piece("one", token_ids=[4]), piece("", token_ids=[5, 6]), end(**USAGE)).completion()
    assert made.prompt_ids == [1, 7, 8]
    assert made.output_ids == [4, 5, 6]
    assert made.token_s == [3.0, 4.0, 4.0]


def test_a_completions_pieces_are_texts_and_its_prompt_ids_stand_with_the_choice():
    made = answer(
        {"choices": [{"text": "one", "token_ids": [4], "prompt_token_ids": [1, 7], "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": USAGE},
    )
    made.check()
    assert (made.text, made.output_ids, made.prompt_ids) == ("one", [4], [1, 7])


def test_a_call_can_be_made_again_from_what_its_completion_holds():
    made = answer({**piece("one"), "prompt_token_ids": [1, 7]}, end(**USAGE))
    made.messages.append({"role": "user", "content": "x"})
    assert made.completion().call == Call([1, 7], [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "told",
    [
        [piece("one")],
        [piece("one"), {"choices": [], "usage": USAGE}],
        [piece("one"), {"choices": [{"delta": {}, "finish_reason": "length"}]}],
    ],
    ids=["no end", "no finish", "no usage"],
)
def test_an_answer_without_its_end_or_its_usage_broke_off(told):
    with pytest.raises(ServerError, match="broke off after 1 pieces"):
        answer(*told).check()


@pytest.mark.parametrize("error", ["dead", {"message": "dead", "code": 500}])
def test_an_error_event_is_an_error_in_the_servers_words(error):
    with pytest.raises(ServerError, match="answered an error: .*dead"):
        answer(piece("one"), {"error": error})


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"choices": 5},
        {"choices": [None]},
        {"choices": ["text"]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"content": 7}}]},
        {"choices": [{"text": "one", "token_ids": ["four"]}]},
        {"choices": [], "usage": 3},
        {"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": 1}},
        {"choices": [], "usage": {"total_tokens": 3}},
    ],
)
def test_an_event_of_another_shape_is_an_error_that_shows_it(event):
    with pytest.raises(ServerError, match="no event of the protocol") as raised:
        answer(event)
    assert json.dumps(event) in str(raised.value)


# ---------------------------------------------------------------- a client and a server


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, toys.SERVER, "--port", str(number)],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(next(line for line in server.stdout if line.startswith("child")).split()[1])
    while True:
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", number)) == 0:
                break
    yield number
    server.kill()
    server.wait()
    server.stdout.close()
    subprocess.run(["kill", "-9", str(child)], check=True)


@pytest.fixture
def client(port, tmp_path):
    made = []

    def make(**changes):
        log = tmp_path / "server.log"
        log.write_text("what the server said last\n")
        engine = toys.Toy(
            path=str(toys.model(tmp_path / "model")),
            dtype="float32",
            devices=["cpu"],
            length="fixed",
            tokens=3,
            log=log,
            **{"account": CountedByDevice(), "port": port, **changes},
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.http.close()


def ask(engine, word, seconds=60.0):
    return engine.complete([HumanMessage(content=f"toy:{word}")], time.monotonic() + seconds)


def test_an_answer_comes_through_with_its_parts_in_order(client):
    before = time.monotonic()
    made = ask(client(), "answers")
    assert made.text == "one two three"
    assert len(made.token_s) == 3
    instants = [before, made.called_s, made.prompt_s, *made.token_s, made.ended_s, time.monotonic()]
    assert instants == sorted(instants)


def test_messages_have_the_protocols_roles_and_are_kept_for_a_replay(client):
    engine, deadline = client(), time.monotonic() + 60.0
    made = engine.complete(
        [SystemMessage(content="be"), HumanMessage(content="a"), AIMessage(content="b")], deadline
    )
    assert [m["role"] for m in made.messages] == ["system", "user", "assistant"]
    assert engine.replay(made.call, deadline).text == made.text


@pytest.mark.parametrize(
    "word, says, pieces",
    [
        ("answers-500", 'the server answered 500: {"error": "no such luck"}', 0),
        ("sends-nonsense", "no event of the protocol", 0),
        ("closes", "peer closed connection", 1),
        ("ends-early", "broke off after 1 pieces", 1),
        ("sends-an-error", "the engine is dead", 1),
    ],
)
def test_a_broken_answer_is_an_error_with_the_servers_log_and_what_came_until_then(
    client, word, says, pieces
):
    with pytest.raises(ServerError) as raised:
        ask(client(), word)
    assert says in str(raised.value)
    assert "log ends: what the server said last" in str(raised.value)
    assert len(raised.value.completion.token_s) == pieces


def test_a_broken_answer_spoils_no_later_one(client):
    engine = client()
    for word in ("closes", "sends-nonsense", "answers-500"):
        with pytest.raises(ServerError):
            ask(engine, word)
        assert ask(engine, "answers").text == "one two three"


def test_a_server_that_is_not_there_is_an_error(client):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers here
        with pytest.raises(ServerError, match="Connection refused.*what the server said last"):
            ask(client(port=nobody.getsockname()[1]), "answers")


@pytest.mark.parametrize("word, pieces", [("is-silent", 0), ("hangs", 1)])
def test_a_silent_server_is_a_timeout_with_its_log(client, word, pieces):
    engine = client()
    ask(engine, "answers")  # the first call makes the HTTP client too, which takes time of its own
    with pytest.raises(StepTimeout, match="while the server was silent.*what the server said last") as raised:
        ask(engine, word, seconds=2.0)
    assert len(raised.value.completion.token_s) == pieces


def test_a_server_that_falls_silent_late_is_waited_for_until_the_deadline_only(client):
    with pytest.raises(StepTimeout) as raised:
        ask(client(), "goes-on-late", seconds=1.5)
    assert "too late" not in raised.value.completion.text


def test_an_out_of_memory_of_the_server_is_one(client):
    with pytest.raises(OutOfMemory) as raised:
        ask(client(), "runs-out-of-memory")
    assert (raised.value.phase, raised.value.requested_mib, raised.value.free_mib) == (
        "decode",
        2048.0,
        512.0,
    )
    assert raised.value.completion.text == "one"


NO_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.\nthen more\n"


def test_an_out_of_memory_in_the_log_explains_an_error(client, tmp_path):
    class Met(CountedByDevice):
        """Of a server that runs out of memory while it has the call."""

        @contextmanager
        def sequence(self):
            with super().sequence() as hold:
                with (tmp_path / "server.log").open("a") as log:
                    log.write(NO_MEMORY)
                yield hold

    with pytest.raises(OutOfMemory, match="Tried to allocate 20.00 MiB") as raised:
        ask(client(account=Met()), "answers-500")
    assert (raised.value.phase, raised.value.requested_mib) == ("prefill", 20.0)


def test_an_out_of_memory_of_an_earlier_call_explains_no_later_error(client):
    engine = client()
    with engine.log.open("a") as log:
        log.write(NO_MEMORY)
    with pytest.raises(ServerError, match=r"answered 500[^$]*Tried to allocate 20.00 MiB"):
        ask(engine, "answers-500")


def test_a_call_is_charged_before_it_is_sent_and_given_back(client, tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    account = SimulatedAccount(ledger, ("slot-0",), 20.0, 0.0, kv_mib_per_token=1.0)
    made = ask(client(account=account), "answers")
    assert made.text
    # 11 characters are 3 tokens where no tokenizer is; 8 marks of a message; 3 tokens of output.
    assert ledger.peaks()["slot-0"] == {account.pid: 14.0}
    assert sum(ledger.usage()["slot-0"].values()) == 0.0


def test_a_call_that_the_budget_has_no_room_for_is_never_sent(client, tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    account = SimulatedAccount(ledger, ("slot-0",), 10.0, 0.0, kv_mib_per_token=1.0)
    with pytest.raises(OutOfMemory, match="simulated budget"):
        ask(client(account=account, port=1), "answers")  # port 1 would refuse: an error of another kind


def test_a_log_that_is_not_there_or_empty_is_said_so(tmp_path):
    assert tail(tmp_path / "none", 10) == "(no log)"
    (tmp_path / "empty").write_text("\n")
    assert tail(tmp_path / "empty", 10) == "(empty)"
    (tmp_path / "log").write_bytes("über alles".encode())
    assert tail(tmp_path / "log", 10).endswith("ber alles")
