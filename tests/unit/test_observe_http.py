"""What a server shows of its ids is taken as it is, and anything else is an error that says so."""

import json

import pytest

from crewbench.checkpoint import synthetic
from crewbench.engines import ENGINES, Call, create
from crewbench.engines.account import CountedByDevice
from crewbench.engines.openai import ServerError, observed

ANSWER = {"choices": [{"token_ids": [7, 9], "logprobs": {"token_logprobs": [-0.5, -1.25]}}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    synthetic.build("tiny", 0, "float32", out)

    def make(engine):
        return create(
            engine, path=str(out / "weights"), dtype="float32", devices=["cuda:0"], length="fixed", tokens=5,
            account=CountedByDevice(), port=1, log=out / "log",
        )  # fmt: skip

    return make


def test_ids_come_with_their_log_probabilities():
    seen = observed(200, json.dumps(ANSWER))
    assert (seen.output_ids, seen.logprobs, seen.logits) == ([7, 9], [-0.5, -1.25], None)


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (500, "no room", "answered 500: no room"),
        (200, "soup", "showed no ids with log probabilities: soup"),
        (200, '{"choices": []}', "showed no ids"),
        (200, '{"choices": [{"token_ids": [7], "logprobs": null}]}', "showed no ids"),
        (200, json.dumps(ANSWER).replace("-0.5, ", ""), "2 ids came with 1 log probabilities"),
    ],
)
def test_what_shows_nothing_of_the_kind_is_an_error(status, text, said):
    with pytest.raises(ServerError, match=said):
        observed(status, text)


def test_vllm_is_asked_for_the_same_ids_as_in_a_replay_and_for_their_log_probabilities(server):
    path, body = server("vllm").shown(Call([1, 2, 3]))
    replay_path, replay = server("vllm").again(Call([1, 2, 3]))
    assert path == replay_path == "/v1/completions"
    added = {"logprobs": 1}
    assert body == {k: v for k, v in replay.items() if not k.startswith("stream")} | added
    assert body["return_token_ids"] and body["prompt"] == [1, 2, 3] and body["temperature"] == 0.0


def test_engines_that_show_nothing_are_those_that_are_declared_so(server):
    for name, info in ENGINES.items():
        if "server" in info.runners:
            if info.unseen:
                with pytest.raises(NotImplementedError):
                    server(name).shown(Call([1]))
            else:
                assert server(name).shown(Call([1]))
