"""Engines make the tokens. This file names them and says what each offers; it imports none.

To add one, add a module with a class that has `Engine`'s methods, and a line to ENGINES.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from langchain_core.messages import BaseMessage


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """`module` and `cls` say where the engine is; `imports` what it needs in its process (what a
    zygote does beforehand); `no_threads` why several steps may not run on one copy at once and
    `one_device` why a copy may not be spread over several devices (empty: they may); `one_device_options`
    (option, value, why) the same of single options; `options` the variant options it takes;
    `device_kinds` what it runs on; `runners` what may hold it; `extra` what must be installed besides
    (extras.py); `compile_cache` whether it compiles and keeps on disk what it compiled (compile_cache.py);
    `devices_together` whether the devices that share a copy read it at the same time (tensor parallel) or in
    turn (layers); `batches` whether sequences in flight share each read of the weights; `reserves` whether it
    takes its device's memory in advance, however much it will need; `unseen` why nothing of its logits can be
    observed (empty: something can, by `observe`).
    `ready_s` and `speed` are rough and only for estimates: seconds from loaded to ready, and tokens a second
    as a multiple of `eager`'s."""

    module: str
    cls: str
    title: str
    imports: tuple[str, ...]
    options: tuple[str, ...] = ()
    no_threads: str = ""
    one_device: str = ""
    one_device_options: tuple[tuple[str, Any, str], ...] = ()
    device_kinds: tuple[str, ...] = ("gpu", "slot")
    runners: tuple[str, ...] = ("process", "actor")
    extra: str = ""
    compile_cache: bool = False
    devices_together: bool = False
    batches: bool = False
    reserves: bool = False
    unseen: str = ""
    ready_s: float = 0.0
    speed: float = 1.0


_LOCAL = ("torch", "transformers", "accelerate", "langchain_huggingface", "crewai")
_READS_ONTO_ONE = (("loader", "parallel", "it reads all weights onto one device"),)
_CLIENT = ("httpx", "langchain_core.messages", "crewai")

ENGINES: dict[str, EngineInfo] = {
    "eager": EngineInfo(
        "crewbench.engines.hf",
        "Eager",
        "Transformers generate, eager",
        _LOCAL,
        options=("loader", "cudnn_attention"),
        one_device_options=_READS_ONTO_ONE,
    ),
    "compiled": EngineInfo(
        "crewbench.engines.compiled",
        "Compiled",
        "Transformers generate, static cache and torch.compile",
        _LOCAL,
        options=("loader", "cache_tokens", "cudnn_attention"),
        no_threads="CUDA graphs of torch.compile fail when threads share them (pytorch issue 123177)",
        one_device="torch.compile makes no CUDA graph of kernels on several devices",
        device_kinds=("gpu",),
        compile_cache=True,
        ready_s=60.0,
        speed=5.0,
    ),
    "transformers-serve": EngineInfo(
        "crewbench.engines.transformers_serve",
        "TransformersServe",
        "Transformers' own server, continuous batching",
        _CLIENT,
        options=("prefix_cache",),
        runners=("server",),
        ready_s=5.0,
        speed=2.0,
        one_device="it puts a copy on one device: use layout replicas",
        batches=True,
        reserves=True,
        extra="serving",
        unseen="its server refuses logprobs and takes no ids",
    ),
    "vllm": EngineInfo(
        "crewbench.engines.vllm",
        "VLLM",
        "vLLM's server, paged attention and continuous batching",
        _CLIENT,
        options=("prefix_cache", "enforce_eager"),
        device_kinds=("gpu",),
        compile_cache=True,
        runners=("server",),
        devices_together=True,
        batches=True,
        reserves=True,
        ready_s=120.0,
        speed=10.0,
        extra="vllm",
    ),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a model as it can be made again: the prompt's ids, or its messages where no ids are seen."""

    prompt_ids: list[int]
    messages: list[dict[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Completion:
    """One call of a model. Instants are CLOCK_MONOTONIC seconds: `called_s` when the adapter was asked,
    `prompt_s` when the engine had the prompt's ids, `token_s[i]` when output id i was there, `ended_s`
    when the text was returned, or the call failed (`prompt_s` 0: before the prompt was taken in). An engine
    that does not see ids leaves them empty and gives the numbers of prompt and output tokens as `counted`."""

    text: str
    prompt_ids: list[int]
    output_ids: list[int]
    called_s: float
    prompt_s: float
    token_s: list[float]
    ended_s: float
    counted: tuple[int, int] | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        return self.counted[0] if self.counted else len(self.prompt_ids)

    @property
    def output_tokens(self) -> int:
        return self.counted[1] if self.counted else len(self.output_ids)

    @property
    def call(self) -> Call:
        """What it takes to ask the same again."""
        return Call(self.prompt_ids, self.messages)

    @property
    def prefill_s(self) -> float:
        """From the prompt's ids to the first output id, or to the failure of a call that made none."""
        if not self.prompt_s:
            return 0.0
        return (self.token_s[0] if self.token_s else self.ended_s) - self.prompt_s

    @property
    def decode_s(self) -> float:
        """From the first output id to the last."""
        return self.token_s[-1] - self.token_s[0] if self.token_s else 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading took, in seconds, and what it left in memory, in MiB (None: not observable)."""

    context_s: float = 0.0
    load_s: float = 0.0
    read_s: float | None = None
    copy_s: float | None = None
    compile_s: float | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What an engine chose and from what: its output ids and either the logits (tokens × vocabulary,
    float32), or its log probability (natural) of each id, where no more is shown."""

    output_ids: list[int]
    logits: np.ndarray | None = None
    logprobs: list[float] | None = None


class StepTimeout(Exception):
    """A step passed its deadline while tokens were being made."""


class Account(Protocol):
    """Who counts memory (engines/account.py)."""

    def weights(self) -> None:
        """One copy of the model is about to be loaded. Raises OutOfMemory."""

    def sequence(self) -> AbstractContextManager[Callable[[int], None]]:
        """One sequence is in flight inside this context, which gives a function to call with the tokens
        it will grow to, before they are computed. Raises OutOfMemory."""


class Engine(Protocol):
    context_tokens: int

    def load(self) -> Loaded:
        """Put the model on its devices. Raises OutOfMemory."""

    def complete(self, messages: list[BaseMessage], deadline_s: float) -> Completion:
        """Answer a conversation. Raises OutOfMemory, StepTimeout (deadline_s is CLOCK_MONOTONIC), with
        what was made until then as the error's `completion`, where the prompt was read."""

    def replay(self, call: Call, deadline_s: float) -> Completion:
        """The same prompt again, straight through the engine, without CrewAI. Raises as `complete`."""

    def observe(self, call: Call, deadline_s: float) -> Observed:
        """The same prompt again on the same path, and what its ids were chosen from: for quality.py, and not
        timed. Raises as `complete`; NotImplementedError from an engine that is declared `unseen`."""

    def count_tokens(self, messages: list[BaseMessage]) -> int:
        """How many ids the conversation's prompt has."""

    def peaks(self) -> list[dict[str, float]]:
        """For each of its devices in order: allocated_peak_mib, reserved_peak_mib, where observable."""


def create(name: str, **kwargs: Any) -> Engine:
    info = ENGINES[name]
    return getattr(importlib.import_module(info.module), info.cls)(**kwargs)
