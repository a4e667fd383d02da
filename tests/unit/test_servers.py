"""What each server is told, and what its log and metrics are taken to mean."""

import json

import pytest

from crewbench.engines import Call
from crewbench.engines.account import CountedByDevice
from crewbench.engines.transformers_serve import TransformersServe
from crewbench.engines.vllm import VLLM
from crewbench.execute.keeper import metrics


@pytest.fixture
def make(tmp_path):
    """A server's description; keywords are its own fields, `generation` the checkpoint's config."""

    def describe(kind, *, config=None, generation=None, **fields):
        place = tmp_path / "model"
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps({"max_position_embeddings": 512, **(config or {})}))
        if generation is not None:
            (place / "generation_config.json").write_text(json.dumps(generation))
        told = {"devices": ["cuda:0"], "length": "fixed", "tokens": 64, "concurrency": 8, **fields}
        log = tmp_path / "log"
        return kind(path=str(place), dtype="bfloat16", account=CountedByDevice(), port=8123, log=log, **told)

    return describe


def option(command, name):
    """What stands after an option, None if it is not there."""
    return command[command.index(name) + 1] if name in command else None


# ---------------------------------------------------------------- what they are told


@pytest.mark.parametrize("kind", [VLLM, TransformersServe])
def test_a_server_listens_on_the_loopback_only_and_on_its_port(make, kind):
    command = make(kind).command()
    assert (option(command, "--host"), option(command, "--port")) == ("127.0.0.1", "8123")


def test_vllms_processes_talk_over_the_loopback_and_to_nobody_outside(make):
    said = make(VLLM).environment()
    assert said["VLLM_HOST_IP"] == "127.0.0.1"
    assert said["GLOO_SOCKET_IFNAME"] == said["NCCL_SOCKET_IFNAME"] == "lo"
    assert said["VLLM_NO_USAGE_STATS"] == said["DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize(
    "budget_mib, share",
    [(None, None), (40960.0, "0.5000"), (81920.0 * 0.55, "0.4950"), (81920.0 * 0.9, "0.8100")],
)
def test_a_memory_budget_is_vllms_share_of_the_devices_memory_less_a_tenth(make, budget_mib, share):
    device_mib = 73728.0 if budget_mib == 40960.0 else 81920.0
    command = make(VLLM, budget_mib=budget_mib, device_mib=device_mib).command()
    assert option(command, "--gpu-memory-utilization") == share


def test_tensor_layout_spreads_one_server_over_all_its_devices(make):
    command = make(VLLM, devices=["cuda:0", "cuda:1"]).command()
    assert option(command, "--tensor-parallel-size") == "2"


def test_vllm_takes_as_many_sequences_at_once_as_there_are_agents(make):
    assert option(make(VLLM, concurrency=12).command(), "--max-num-seqs") == "12"
    assert option(make(VLLM, concurrency=2).command(), "--max-num-seqs") == "8"


def test_vllms_prefix_cache_and_compiling_are_what_the_variant_says(make):
    plain = make(VLLM).command()
    assert "--no-enable-prefix-caching" in plain and "--enforce-eager" not in plain
    other = make(VLLM, options={"prefix_cache": True, "enforce_eager": True}).command()
    assert "--enable-prefix-caching" in other and "--enforce-eager" in other
    assert "--no-enable-prefix-caching" not in other


def test_transformers_own_server_starts_through_its_own_command_only_with_its_prefix_cache(make):
    assert "crewbench.engines.transformers_start" in make(TransformersServe).command()
    assert (
        "transformers.cli.transformers" in make(TransformersServe, options={"prefix_cache": True}).command()
    )


def test_on_a_cpu_the_caches_size_is_given_and_follows_the_agents(make):
    def blocks(concurrency):
        command = make(TransformersServe, devices=["cpu"], concurrency=concurrency).command()
        return int(option(command, "--cb-num-blocks"))

    assert blocks(8) == 8 * blocks(1) == 256


def test_on_a_gpu_a_budget_leaves_the_share_of_what_is_free_alone(make):
    # The ballast has taken the rest: what is free is the budget already.
    for budget_mib in (None, 24000.0):
        command = make(TransformersServe, budget_mib=budget_mib, device_mib=143771.0).command()
        assert option(command, "--cb-max-memory-percent") == "0.9"


# ---------------------------------------------------------------- requests

ASKED = [{"role": "user", "content": "What breaks first?"}]


def test_vllm_is_asked_for_exactly_so_many_tokens_greedily_with_ids_and_usage(make):
    path, body = make(VLLM).chat(ASKED)
    assert path == "/v1/chat/completions"
    assert (body["messages"], body["model"], body["stream"]) == (ASKED, "crew", True)
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (64, True, 0.0)
    assert body["return_token_ids"] and body["stream_options"] == {"include_usage": True}
    assert body["repetition_penalty"] == 1.0


def test_a_natural_answer_may_end_before(make):
    _, body = make(VLLM, length="natural").chat(ASKED)
    assert (body["max_tokens"], body["ignore_eos"]) == (64, False)


def test_vllms_replay_is_the_very_ids(make):
    path, body = make(VLLM).again(Call([1, 7, 8], ASKED))
    assert (path, body["prompt"]) == ("/v1/completions", [1, 7, 8])
    assert "messages" not in body and body["ignore_eos"]


def test_a_replay_where_no_ids_are_seen_is_the_same_messages(make):
    engine = make(TransformersServe)
    assert engine.again(Call([], ASKED)) == engine.chat(ASKED)


@pytest.mark.parametrize(
    "length, config, generation, ends",
    [
        ("fixed", {"eos_token_id": 2}, {"eos_token_id": [2, 3]}, -1),
        ("natural", {"eos_token_id": 2}, {"eos_token_id": [2, 3]}, [2, 3]),
        ("natural", {"eos_token_id": 2}, None, 2),
        ("natural", {}, {}, -1),
    ],
)
def test_transformers_own_server_is_told_where_a_text_ends(make, length, config, generation, ends):
    engine = make(TransformersServe, length=length, config=config, generation=generation)
    told = json.loads(engine.chat(ASKED)[1]["generation_config"])
    assert told == {"max_new_tokens": 64, "do_sample": False, "eos_token_id": ends}


# ---------------------------------------------------------------- what their logs say

LOG = """\
(APIServer pid=1) INFO 11-22 10:00 [utils.py:299] vLLM server version 0.25.0, serving model /models/m
(Worker_TP0 pid=7) INFO 11-22 10:00 [default_loader.py:308] Loading weights took 1.50 seconds
(Worker_TP0 pid=7) INFO [gpu_model_runner.py:4118] Model loading took 6.83 GiB memory and 2.250000 seconds
(Worker_TP1 pid=8) INFO [gpu_model_runner.py:4118] Model loading took 6.81 GiB memory and 3.125000 seconds
(Worker_TP0 pid=7) INFO 11-22 10:00 [monitor.py:48] torch.compile took 11.25 s in total
(EngineCore pid=5) INFO 11-22 10:00 [kv_cache_utils.py:1287] GPU KV cache size: 812,345 tokens
(Worker_TP0 pid=7) INFO [gpu_model_runner.py:5061] Graph capturing finished in 21 secs, took 0.61 GiB
(EngineCore pid=5) INFO [core.py:272] init engine (profile, create kv cache, warmup model) took 42.75 s \
(compilation: 11.25 s)
(APIServer pid=1) INFO 11-22 10:00 [launcher.py:38] Available routes are:
"""


def lines(text):
    return [(float(i), line) for i, line in enumerate(text.splitlines())]


def test_vllms_log_splits_its_start_and_the_slowest_rank_counts(make):
    start = make(VLLM).understood(lines(LOG))
    assert (start.load_s, start.compile_s) == (3.125, 42.75)
    assert start.kv_tokens == 812345
    assert start.weights_mib == pytest.approx(6.83 * 1024)
    assert start.facts == {
        "torch_compile_s": 11.25,
        "graph_capture_s": 21.0,
        "read_weights_s": 1.5,
        "version": "0.25.0",
    }


def test_what_an_eager_start_does_not_say_is_not_known(make):
    said = "\n".join(line for line in LOG.splitlines() if "compile took" not in line and "Graph" not in line)
    facts = make(VLLM).understood(lines(said)).facts
    assert (facts["torch_compile_s"], facts["graph_capture_s"]) == (None, None)
    nothing = make(VLLM).understood([])
    assert (nothing.load_s, nothing.compile_s, nothing.kv_tokens, nothing.weights_mib) == (None,) * 4


def test_transformers_own_server_loads_between_two_lines_of_its_log(make):
    said = [(1.0, "[transformers] Loading /models/m@main"), (3.5, "INFO:     Started server process [7]")]
    assert make(TransformersServe).understood(said).load_s == 2.5
    assert make(TransformersServe).understood(said[:1]).load_s is None


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "ValueError: Free memory on device cuda:0 (3.2/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 125.8 GiB).",
        "ValueError: To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache "
        "is needed, which is larger than the available KV cache memory (1.5 GiB).",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB.",
    ],
)
def test_vllm_has_several_words_for_too_little_memory(make, line):
    log = f"INFO starts\n(EngineCore pid=5) ERROR {line}\nRuntimeError: Engine core initialization failed."
    met = make(VLLM).out_of_memory(log, "load")
    assert (met.phase, line in met.message) == ("load", True)
    assert met.requested_mib == (224.0 if "allocate" in line else None)


def test_another_failure_is_no_out_of_memory(make):
    assert make(VLLM).out_of_memory("RuntimeError: NCCL error: unhandled system error", "load") is None


# ---------------------------------------------------------------- metrics

TEXT = """\
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="crew"} 0.0625
vllm:num_requests_running{engine="0",model_name="crew"} 5.0
vllm:num_requests_running{engine="1",model_name="crew"} 2.0
vllm:num_preemptions_total{engine="0",model_name="crew"} 1.0
vllm:num_preemptions_created{engine="0",model_name="crew"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="crew"} 1.024e+03
vllm:generation_tokens_total{engine="0"} NaN-ish
vllm:num_requests_waiting_by_reason{reason="x"} 3.0
python_gc_objects_collected_total{generation="0"} 9.0
"""


def test_metrics_are_summed_over_their_labels_and_counters_found_by_either_name():
    assert metrics(TEXT, VLLM.names.values()) == {
        "vllm:kv_cache_usage_perc": 0.0625,
        "vllm:num_requests_running": 7.0,
        "vllm:num_preemptions": 1.0,
        "vllm:prompt_tokens": 1024.0,
    }


def test_a_page_that_is_no_metrics_holds_none():
    assert metrics("<html>not found</html>", VLLM.names.values()) == {}
