"""What a server shows of its ids is taken as it is, and anything else is an error that says so."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

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

    def make(engine, port=1):
        return create(
            engine, path=str(out / "weights"), dtype="float32", devices=["cuda:0"], length="fixed", tokens=5,
            account=CountedByDevice(), port=port, log=out / "log",
        )  # fmt: skip

    return make


@pytest.fixture
def answering():
    """A real HTTP server on the loopback that answers every request alike, and keeps what it was asked."""
    asked, threads, servers = [], [], []

    def start(status, text):
        class Answer(BaseHTTPRequestHandler):
            def do_POST(self):
                asked.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *words):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threads.append(threading.Thread(target=servers[-1].serve_forever))
        threads[-1].start()
        return servers[-1].server_port

    start.asked = asked
    yield start
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_engine_over_http_is_observed_by_one_request_that_is_not_streamed(server, answering):
    engine = server("vllm", answering(200, json.dumps(ANSWER)))
    seen = engine.observe(Call([1, 2, 3]), time.monotonic() + 60)
    engine.http.close()
    assert (seen.output_ids, seen.logprobs) == ([7, 9], [-0.5, -1.25])
    ((path, body),) = answering.asked
    assert path == "/v1/completions" and body["prompt"] == [1, 2, 3] and "stream" not in body


def test_a_server_that_answers_an_error_is_one_of_the_engines_own(server, answering):
    engine = server("vllm", answering(500, "broken"))
    with pytest.raises(ServerError, match="answered 500: broken; the server's log ends"):
        engine.observe(Call([1]), time.monotonic() + 60)
    engine.http.close()


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
