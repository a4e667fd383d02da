"""torch.compile really keeps and finds its work where a trial tells it to."""

import os
import subprocess
import sys

import pytest

from crewbench.engines import compile_cache
from made_study import ROOT, SCRIPTS

COMPILE = """
import torch
from torch._dynamo.utils import counters

def f(x):
    return torch.nn.functional.softmax(x @ x.T, -1).sum(0) * 3 + x.cos().mean()

torch.compile(f, fullgraph=True)(torch.ones(16, 16))
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


def compile_in_a_new_process(cache) -> list[int]:
    """Hits in the caches of graphs."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **cache.environment},
    )
    return [int(hits) for hits in done.stdout.split()]


@pytest.mark.needs("g++")
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    first = compile_cache.at(tmp_path / "kept")
    assert first.state == "empty"
    assert sum(compile_in_a_new_process(first)) == 0
    then = compile_cache.at(tmp_path / "kept")
    assert then.state == "filled"
    assert sum(compile_in_a_new_process(then)) >= 1
    assert then.record()["files_after"] == then.files


IN_PLACE_OF_EAGER = """
import sys
from dataclasses import replace

sys.path.append({scripts!r})
from crewbench import engines

engines.ENGINES["eager"] = replace(
    engines.ENGINES["eager"], module="another_engine", cls={cls!r}, compile_cache={compiles!r}
)
"""


def in_place_of_eager(place, text, cls, compiles):
    """What a trial is told so that its engine `eager` is this class of this module's text."""
    site = IN_PLACE_OF_EAGER.format(scripts=str(SCRIPTS), cls=cls, compiles=compiles)
    (place / "sitecustomize.py").write_text(site)
    (place / "another_engine.py").write_text(text)
    return {"PYTHONPATH": str(place)}


# `compiled` wants a GPU, so here `eager` compiles something small when it loads, with torch's own compiler.
COMPILES = """
import os, sys
from pathlib import Path
import torch
from crewbench.engines.hf import Eager

class Compiling(Eager):
    def load(self):
        loaded = super().load()
        scratch = Path(os.environ["TMPDIR"])
        names = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
        print("found in scratch:", *names, file=sys.stderr, flush=True)
        torch.compile(lambda x: (x @ x.T).softmax(-1).sum(0) * 3)(torch.ones(16, 16))
        return loaded
"""


@pytest.fixture(scope="module")
def compiled_trials(small_study, tmp_path_factory):
    """Two repeats of one cell, run in this order."""
    engine = in_place_of_eager(tmp_path_factory.mktemp("site"), COMPILES, "Compiling", compiles=True)
    run = {"mode": "parallel", "gpus": 1, "agents": 1, "start": "process"}
    study = small_study({"repeats": 2, "warm_rounds": 1, "runs": [run]})
    return [study.run(name, **engine) for name in sorted(study.trials)]


@pytest.mark.needs("g++")
def test_each_repeat_finds_it_compiled_and_only_the_first_has_it_made(compiled_trials):
    first, second = (result.trial["compile_cache"] for result in compiled_trials)
    assert [first["state"], second["state"]] == ["filled", "filled"]
    assert first["made_s"] > 0 and first["files"] > 0
    assert second["made_s"] is None and second["files"] >= first["files"]
    assert [result.trial["status"] for result in compiled_trials] == ["ok", "ok"]


@pytest.mark.needs("g++")
def test_the_start_before_the_clock_leaves_no_row_and_no_time(compiled_trials):
    first, second = compiled_trials
    assert "a worker starts before the clock" in first.log
    assert "a worker starts before the clock" not in second.log
    for name in ("workers", "agents", "rounds"):
        assert len(first.rows(name)) == len(second.rows(name)) > 0
    assert {r["attempt"] for r in first.rows("workers")} == {"1"}
    # The sampler starts after it and shortly before the cold round.
    began_s = float(first.rows("rounds")[0]["started_at_s"])
    assert began_s - first.trial["compile_cache"]["made_s"] < float(first.rows("gpu")[0]["t_at_s"]) <= began_s


@pytest.mark.needs("g++")
def test_what_the_start_before_the_clock_left_elsewhere_is_gone(compiled_trials):
    # torch precompiles headers in the temporary directory, wherever its cache is: only the first repeat would
    # find them, and be the faster one.
    found = [line for r in compiled_trials for line in r.log.splitlines() if "found in scratch:" in line]
    before, first, second = (line.split("found in scratch:")[1].split() for line in found)
    assert first == [name.replace("-0-", "-1-") for name in before] == second


# On a CPU nothing is compiled for it, but the static cache is the same.
SMALL_CACHE = """
from crewbench.engines.compiled import Compiled

class Small(Compiled):
    def __init__(self, **kwargs):
        super().__init__(cache_tokens=1024, **kwargs)
"""
AGENTS = """
talker: {{role: Talker, goal: Say it all, backstory: "{long}"}}
other: {{role: Other, goal: Say it, backstory: None to speak of}}
"""


def test_a_prompt_too_long_for_the_static_cache_is_an_error_that_says_so_and_the_worker_serves_the_next_step(
    small_study, tmp_path
):
    agents = tmp_path / "agents.yaml"
    agents.write_text(AGENTS.format(long="Years and years of it. " * 200))
    run = {"mode": "sequential", "agents": 2}
    crew = {"agents": str(agents), "tasks": str(ROOT / "config/tasks.yaml")}
    study = small_study({"warm_rounds": 1, "crew": crew, "runs": [run]})
    engine = in_place_of_eager(tmp_path, SMALL_CACHE, "Small", compiles=False)
    result = study.run(study.trials[0], **engine)
    rows = {(r["round"], r["agent"]): r for r in result.rows("agents")}
    for number in ("0", "1"):
        long, short = rows[number, "talker"], rows[number, "other"]
        assert (long["status"], short["status"]) == ("error", "ok")
        prompt = int(long["prompt_tokens"])
        assert prompt > 1024 - 8
        # CrewAI would cut a prompt down and call again, if it took this for a model's own limit.
        assert long["llm_calls"] == "1"
        assert long["error"] == (
            f"ValueError: a prompt of {prompt} tokens and an output of up to 8 do not fit in the static "
            "cache, which holds 1024: raise cache_tokens"
        )
    # In the warm round one worker met both, in this order.
    assert rows["1", "talker"]["worker_life"] == rows["1", "other"]["worker_life"]
