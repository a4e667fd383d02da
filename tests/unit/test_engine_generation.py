"""A call is told everything: nothing that a checkpoint says about generating reaches it by itself."""

import json
import shutil

import pytest

from crewbench.checkpoint import synthetic
from crewbench.engines import create
from crewbench.engines.account import CountedByDevice

TOKENS = 12


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    synthetic.build("tiny", 7, "float32", out)
    return out / "weights"


@pytest.fixture
def says(plain, tmp_path):
    """The checkpoint with further lines in its generation_config.json."""

    def make(**lines):
        place = tmp_path / "weights"
        shutil.copytree(plain, place)
        path = place / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **lines}))
        return place

    return make


def ids(path, length="fixed"):
    from langchain_core.messages import HumanMessage

    engine = create(
        "eager",
        path=path,
        dtype="float32",
        devices=["cpu"],
        length=length,
        tokens=TOKENS,
        account=CountedByDevice(),
    )
    engine.load()
    return engine.complete([HumanMessage(content="What breaks first?")], 1e12).output_ids


@pytest.fixture(scope="module")
def greedy(plain):
    found = ids(plain)
    assert len(found) == TOKENS
    return found


def test_an_answer_of_fixed_length_goes_on_after_the_checkpoints_end_of_text(says, greedy):
    assert ids(says(eos_token_id=greedy[4])) == greedy


def test_an_answer_of_natural_length_ends_with_it(says, greedy):
    end = greedy[4]
    assert ids(says(eos_token_id=[end]), "natural") == greedy[: greedy.index(end) + 1]


def test_a_checkpoints_own_penalty_or_limit_changes_no_answer(says, greedy):
    assert ids(says(repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[greedy[0]])) == greedy
