"""A call is told everything: nothing that a checkpoint says about generating reaches it by itself."""

import json
import shutil

import pytest

from crewbench.checkpoint import synthetic
from crewbench.engines import Call, create
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


def loaded(path, length="fixed", name="eager", **options):
    engine = create(
        name,
        path=path,
        dtype="float32",
        devices=["cpu"],
        length=length,
        tokens=TOKENS,
        account=CountedByDevice(),
        **options,
    )
    engine.load()
    return engine


def ids(path, length="fixed"):
    from langchain_core.messages import HumanMessage

    return loaded(path, length).complete([HumanMessage(content="What breaks first?")], 1e12).output_ids


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


# ---------------------------------------------------------------- the static cache; no CPU compiles for it

CACHE_TOKENS = 64


def prompt(tokens):
    return Call([5 + i % 200 for i in range(tokens)])


@pytest.fixture(scope="module")
def compiled(plain):
    return loaded(plain, name="compiled", cache_tokens=CACHE_TOKENS)


@pytest.mark.parametrize("tokens", [40, CACHE_TOKENS - TOKENS])
def test_a_prompt_and_output_that_fit_in_the_static_cache_are_answered_as_by_eager(plain, compiled, tokens):
    there = compiled.replay(prompt(tokens), 1e12).output_ids
    assert there == loaded(plain).replay(prompt(tokens), 1e12).output_ids
    assert len(there) == TOKENS


@pytest.mark.parametrize("ask", ["replay", "observe"])
@pytest.mark.parametrize("tokens", [CACHE_TOKENS - TOKENS + 1, 60, 100])
def test_those_that_do_not_are_refused_with_what_to_raise_and_the_next_call_is_answered(
    compiled, ask, tokens
):
    said = (
        f"a prompt of {tokens} tokens and an output of up to 12 do not fit in the static cache, "
        "which holds 64: raise cache_tokens"
    )
    with pytest.raises(ValueError, match=f"^{said}$"):
        getattr(compiled, ask)(prompt(tokens), 1e12)
    assert len(compiled.replay(prompt(40), 1e12).output_ids) == TOKENS


def test_a_cache_too_small_for_any_answer_is_refused_when_the_engine_loads(plain):
    with pytest.raises(ValueError, match="raise cache_tokens"):
        loaded(plain, name="compiled", cache_tokens=TOKENS)
