"""Engines on a real GPU, on the tiny checkpoint in bfloat16."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from made_study import PYTHONPATH, SCRIPTS, Study, run

pytestmark = pytest.mark.gpu
TOKENS = 48


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    spec = '{"kind": "synthetic", "shape": "tiny", "seed": 0, "dtype": "bfloat16", "model_id": "tiny"}'
    run(sys.executable, SCRIPTS / "model.py", "--spec", spec, "--out", place, cwd=place)
    return place / "weights"


def answer(checkpoint, name, devices=("cuda:0",), **options):
    """One answer's ids, twice, and what loading took."""
    from langchain_core.messages import HumanMessage

    from crewbench.engines import create
    from crewbench.engines.account import CountedByDevice

    engine = create(
        name,
        path=checkpoint,
        dtype="bfloat16",
        devices=devices,
        length="fixed",
        tokens=TOKENS,
        account=CountedByDevice(),
        **options,
    )
    loaded = engine.load()
    completions = [engine.complete([HumanMessage(content="What breaks first?")], 1e12) for _ in range(2)]
    return engine, loaded, completions


def test_the_parallel_loader_gives_the_same_tokens_as_the_plain_one(checkpoint):
    _, _, plain = answer(checkpoint, "eager")
    _, _, parallel = answer(checkpoint, "eager", loader="parallel")
    assert plain[0].prompt_ids == parallel[0].prompt_ids
    assert plain[0].output_ids == parallel[0].output_ids == plain[1].output_ids


def widest_gap(eager, completion):
    """By how much a chosen id's logit is below the best one at worst, in standard deviations of logits."""
    import torch

    prompt = len(completion.prompt_ids)
    ids = torch.tensor([completion.prompt_ids + completion.output_ids], device="cuda:0")
    with torch.no_grad():
        logits = eager.model(ids).logits[0, prompt - 1 : -1].float()
    chosen = logits.gather(1, ids[0, prompt:, None])[:, 0]
    return ((logits.max(1).values - chosen).max() / logits.std()).item()


# The compiler's advice on precision and the like, which differs with the version, is no fault of the engine.
@pytest.mark.filterwarnings(r"ignore:::torch\._(inductor|dynamo)")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # torch's own first one
def test_a_compiled_engine_chooses_what_eager_finds_best_or_nearly_so(checkpoint):
    """With random weights logits are nearly flat, so ids may differ at ties: judged by the gap in logits."""
    eager, _, _ = answer(checkpoint, "eager")
    _, loaded, compiled = answer(checkpoint, "compiled", cache_tokens=256)
    assert loaded.compile_s > 0
    for completion in compiled:
        assert len(completion.output_ids) == TOKENS
        assert widest_gap(eager, completion) < 0.5


@pytest.mark.filterwarnings(r"ignore:::torch\._(inductor|dynamo)")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # torch's own first one
def test_a_compiled_engine_answers_in_threads_that_did_not_load_it_and_compiles_nothing_more(checkpoint):
    """CrewAI makes every call from a new thread, and CUDA graphs are recorded in the loading one only."""
    import torch
    from langchain_core.messages import HumanMessage

    engine, _, (here, _) = answer(checkpoint, "compiled", cache_tokens=256)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    message = [HumanMessage(content="What breaks first?")]
    with ThreadPoolExecutor(1) as elsewhere:
        there = elsewhere.submit(engine.complete, message, 1e12).result()
        again = engine.observe(there.call, 1e12)
    assert len(there.output_ids) == TOKENS == len(again.output_ids)
    assert there.prompt_ids == here.prompt_ids
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_a_copy_on_two_gpus_lies_on_both_and_chooses_what_one_gpu_finds_best_or_nearly_so(checkpoint):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    alone, _, one = answer(checkpoint, "eager")
    spread, _, two = answer(checkpoint, "eager", devices=("cuda:0", "cuda:1"))
    held = dict.fromkeys((0, 1), 0)
    for tensor in spread.model.parameters():
        held[tensor.device.index] += tensor.nbytes
    assert sum(held.values()) == sum(tensor.nbytes for tensor in alone.model.parameters())
    assert min(held.values()) > 0.3 * sum(held.values())
    assert [peak["allocated_peak_mib"] > 0 for peak in spread.peaks()] == [True, True]
    assert two[0].prompt_ids == one[0].prompt_ids
    for completion in two:
        assert len(completion.output_ids) == TOKENS
        assert completion.output_ids == one[0].output_ids or widest_gap(alone, completion) < 0.5


LOADS = """
import json, sys
from crewbench.engines import create
from crewbench.engines.account import CountedByDevice
engine = create("compiled", path=sys.argv[1], dtype="bfloat16", devices=["cuda:0"], length="fixed", tokens=8,
                account=CountedByDevice(), cache_tokens=256)
took = engine.load().compile_s
from torch._dynamo.utils import counters
seen = counters["inductor"]
print(json.dumps([took, seen["fxgraph_cache_hit"], seen["fxgraph_cache_miss"]]))
"""


def test_a_second_process_finds_what_the_first_one_compiled(checkpoint, tmp_path):
    from crewbench.engines import compile_cache

    told, found = [], []
    for _ in range(2):
        cache = compile_cache.at(tmp_path / "kept")
        found.append(cache.record() | {"now": cache.files})
        environment = {**os.environ, **cache.environment, "PYTHONPATH": PYTHONPATH}
        command = [sys.executable, "-c", LOADS, str(checkpoint)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]))
    after = compile_cache.at(tmp_path / "kept")
    print(f"compile_s, hits and misses of graphs, empty and filled: {told}; {after.files} files")
    assert [f["state"] for f in found] == ["empty", "filled"]
    assert found[1]["now"] > 0
    # Not by counting files: a start with a filled cache may add some (196 became 220 once).
    (_, _, missed), (_, hits, missed_then) = told
    assert missed > 0 and hits > 0
    assert missed_then < missed


def test_a_trial_says_what_it_found_compiled_and_how_fast_memory_was(tmp_path):
    runs = [{"mode": "sequential", "agents": 1, "engine": "compiled", "start": ["disk", "process"]}]
    model = {"kind": "synthetic", "shape": "tiny", "dtype": "bfloat16"}
    study = Study(
        tmp_path / "s",
        {"repeats": 2, "warm_rounds": 1, "model": model, "devices": {"kind": "gpu"}, "runs": runs},
    )
    trials = {name: study.run(name).trial for name in sorted(study.trials)}
    states = {name: trial["compile_cache"]["state"] for name, trial in trials.items()}
    print(states)
    assert [s for name, s in states.items() if "__disk__" in name] == ["empty", "empty"]
    assert [s for name, s in states.items() if "__process__" in name] == ["filled", "filled"]
    made_s = [t["compile_cache"]["made_s"] for name, t in trials.items() if "__process__" in name]
    assert made_s[0] > 0 and made_s[1] is None  # by a worker that started before round 0, once
    for trial in trials.values():
        (copied,) = trial["bandwidth_gb_s"].values()
        assert copied["why"] == "" and copied["median"] > 100
        assert 0 < trial["model"]["decode_bytes"] < trial["model"]["weights_bytes"]
        assert trial["sampler"]["errors"] == 0 and not trial["taints"]
