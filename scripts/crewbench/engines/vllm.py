"""vLLM's own OpenAI server: paged attention, continuous batching, tensor parallel over several GPUs.

It runs in an interpreter of its own (envs/requirements-vllm.txt), because it is built for one version of
torch. What its log's lines and metrics mean is checked against the version named there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from crewbench import extras
from crewbench.engines import Call
from crewbench.engines.openai import LOCAL, Line, Server, Start

MODEL = "crew"
LOOPBACK = "lo"
SHARE = 0.9
"""Of a memory budget, what vLLM is given: the rest is for contexts and what it takes outside its count."""


@dataclass(slots=True)
class VLLM(Server):
    metrics: ClassVar[str | None] = "/metrics"
    names: ClassVar[dict[str, str]] = {
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "kv_used_share": "vllm:kv_cache_usage_perc",
        "preemptions": "vllm:num_preemptions",
        "prefix_queries": "vllm:prefix_cache_queries",
        "prefix_hits": "vllm:prefix_cache_hits",
        "prompt_tokens": "vllm:prompt_tokens",
        "output_tokens": "vllm:generation_tokens",
    }

    no_memory: ClassVar[tuple[str, ...]] = (
        *Server.no_memory,
        "No available memory for the cache blocks",
        "less than desired GPU memory",
        "larger than the available KV cache memory",
    )

    def command(self) -> list[str]:
        words = [
            *(extras.interpreter("vllm"), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self.path, "--served-model-name", MODEL, "--dtype", self.dtype),
            *("--host", LOCAL, "--port", str(self.port)),
            *("--tensor-parallel-size", str(len(self.devices))),
            *("--max-num-seqs", str(max(8, self.concurrency))),
            "--disable-uvicorn-access-log",
        ]
        if self.budget_mib and self.device_mib:
            words += ["--gpu-memory-utilization", f"{SHARE * self.budget_mib / self.device_mib:.4f}"]
        words += [
            "--enable-prefix-caching" if self.options.get("prefix_cache") else "--no-enable-prefix-caching"
        ]
        if self.options.get("enforce_eager"):
            words += ["--enforce-eager"]
        return words

    def environment(self) -> dict[str, str]:
        return {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # Its sampling kernels are built at first use by a compiler that a GPU host may lack.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "NO_COLOR": "1",
            # Its processes talk over TCP: on the loopback, whatever the host's own address is.
            "VLLM_HOST_IP": LOCAL,
            "GLOO_SOCKET_IFNAME": LOOPBACK,
            "NCCL_SOCKET_IFNAME": LOOPBACK,
        }

    def understood(self, lines: Sequence[Line]) -> Start:
        """Several ranks say the same: the slowest counts, and memory is that of one device."""
        text = "\n".join(line for _, line in lines)
        load = _largest(r"Model loading took \S+ GiB(?: memory)? and (?P<n>[\d.]+) seconds", text)
        weights = _largest(r"Model loading took (?P<n>[\d.]+) GiB", text)
        init = _largest(r"init engine \(.*?\) took (?P<n>[\d.]+) s", text)
        tokens = _largest(r"GPU KV cache size: (?P<n>[\d,]+) tokens", text)
        return Start(
            load_s=load,
            compile_s=init,
            weights_mib=None if weights is None else weights * 1024,
            kv_tokens=None if tokens is None else int(tokens),
            facts={
                "torch_compile_s": _largest(r"torch\.compile.*? took (?P<n>[\d.]+) s in total", text),
                "graph_capture_s": _largest(r"Graph capturing finished in (?P<n>[\d.]+) secs", text),
                "read_weights_s": _largest(r"Loading weights took (?P<n>[\d.]+) seconds", text),
                "version": _word(r"version (\d+\.\d+\.\d+[^\s,]*)", text),
            },
        )

    def _common(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_tokens": self.tokens,
            "ignore_eos": self.fixed,
            # The one thing of a checkpoint's generation config that changes a greedy answer.
            "repetition_penalty": 1.0,
            "return_token_ids": True,
        }

    def chat(self, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        return "/v1/chat/completions", {**self._common(), "messages": messages}

    def again(self, call: Call) -> tuple[str, dict[str, Any]]:
        return "/v1/completions", {**self._common(), "prompt": call.prompt_ids}

    def shown(self, call: Call) -> tuple[str, dict[str, Any]]:
        path, body = self.again(call)
        del body["stream"], body["stream_options"]
        return path, {**body, "logprobs": 1}


def _largest(pattern: str, text: str) -> float | None:
    return max((float(m["n"].replace(",", "")) for m in re.finditer(pattern, text)), default=None)


def _word(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None
