"""Transformers' own server on a CPU, asked directly: where a text ends, and what it keeps of prompts."""

import json
import shutil
import socket
import time

import pytest
from langchain_core.messages import HumanMessage

from crewbench import crews
from crewbench.checkpoint import synthetic
from crewbench.devices.companion import Companion
from crewbench.engines import create
from crewbench.engines.account import CountedByDevice
from crewbench.engines.transformers_serve import TransformersServe
from crewbench.execute import keeper

TOKENS = 12
FOUND = "Found a prefix match"
ASKED = "What breaks first? " * 20

ALOUD = """
import logging, runpy, sys
logging.basicConfig()
logging.getLogger("ContinuousBatchingLogger").setLevel("DEBUG")
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module as `python -m` does, with the batching's own words in the log."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    synthetic.build("tiny", 7, "float32", out)
    return out / "weights"


def describe(kind, path, length, **more):
    fields = {"dtype": "float32", "devices": ["cpu"], "length": length, "tokens": TOKENS}
    return kind(path=str(path), account=CountedByDevice(), **fields, **more)


def ask(engine, words):
    return engine.complete([HumanMessage(content=words)], time.monotonic() + 120.0)


@pytest.fixture(scope="module")
def eager(plain):
    """What the same weights answer in process: its ids, and its text by words."""
    engine = describe(lambda **fields: create("eager", **fields), plain, "fixed")
    engine.load()
    return lambda words: ask(engine, words)


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Starts a server; all are stopped when the module's tests are done."""
    started = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in crews.OFFLINE.items():
            patch.setenv(name, value)

        def start(path, length, **options):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            log = tmp_path_factory.mktemp("server") / "log"
            engine = describe(TransformersServe, path, length, port=port, log=log, options=options)
            python, _, *program = engine.command()
            spec = {
                "command": [python, "-c", ALOUD, *program],
                "environment": engine.environment(),
                "log": str(log),
                "port": port,
                "health": engine.health,
                "metrics": engine.metrics,
                "names": {},
                "hz": 1.0,
                "ready_by_s": time.monotonic() + 120.0,
            }
            companion = Companion(keeper.__name__, spec)
            companion.start()
            started.append((engine, companion))
            said = companion.ready(130.0)
            assert "ready_s" in said, said
            return engine

        yield start
        for engine, companion in started:
            engine.http.close()
            companion.stop(keeper.END_S)


@pytest.fixture(scope="module")
def natural(plain, serve, eager, tmp_path_factory):
    """A server of a checkpoint whose text ends at the fifth id of the answer to ASKED."""
    place = tmp_path_factory.mktemp("ends") / "weights"
    shutil.copytree(plain, place)
    path = place / "generation_config.json"
    ends = [eager(ASKED).output_ids[4]]
    said = {**json.loads(path.read_text()), "eos_token_id": ends, "repetition_penalty": 5.0}
    path.write_text(json.dumps(said))
    return serve(place, "natural")


@pytest.fixture(scope="module")
def sharing(plain, serve):
    return serve(plain, "fixed", prefix_cache=True)


def test_an_answer_of_natural_length_ends_where_the_checkpoint_says(natural, eager):
    made = ask(natural, ASKED)
    whole = eager(ASKED)
    assert made.output_tokens == whole.output_ids.index(whole.output_ids[4]) + 1
    assert made.prompt_tokens == len(whole.prompt_ids)
    # A penalty of the checkpoint's would have changed it.
    assert made.text and whole.text.startswith(made.text)


def test_an_answer_of_fixed_length_goes_on_to_its_end(sharing, eager):
    made = ask(sharing, ASKED)
    assert made.output_tokens == TOKENS
    assert made.text == eager(ASKED).text


def test_a_prompt_that_was_seen_before_is_computed_again(natural):
    for _ in range(3):
        ask(natural, ASKED)
    log = natural.log.read_text()
    assert "finished: prefill_len" in log
    assert FOUND not in log


def test_unless_the_variant_asks_for_the_prefix_cache(sharing):
    for _ in range(3):
        ask(sharing, ASKED)
    assert FOUND in sharing.log.read_text()


def test_what_came_of_an_answer_is_timed_piece_by_piece(sharing):
    made = ask(sharing, "Another question.")
    assert 1 < len(made.token_s) <= TOKENS
    assert made.called_s <= made.prompt_s < made.token_s[0] < made.token_s[-1] <= made.ended_s
