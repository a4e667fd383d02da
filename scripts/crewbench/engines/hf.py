"""Engines that generate in this process: a Transformers pipeline behind LangChain's ChatHuggingFace.

`eager` runs the model as it is. `compiled` is Transformers' own static cache and torch.compile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import BaseMessage
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CompileConfig,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from crewbench.checkpoint.files import weight_files
from crewbench.devices.budget import OutOfMemory, is_cuda_oom
from crewbench.engines import Account, Completion, Loaded, StepTimeout


MIB = 2**20

logging.disable_progress_bar()
# tqdm would make a named semaphore for bars of several processes, and workers end without freeing it.
tqdm.set_lock(threading.RLock())


class Recorder(BaseStreamer):
    """Takes the ids out of `generate` as they appear, with the time of each.

    `put` gets the prompt first and then one id at a time, already on the host: the copy to the host is
    generate's own synchronisation, so no further one is added.
    """

    def __init__(self, deadline_s: float, on_prompt: Callable[[int], None]) -> None:
        self.deadline_s = deadline_s
        self.on_prompt = on_prompt
        self.prompt_ids: list[int] | None = None
        self.prompt_s = 0.0
        self.output_ids: list[int] = []
        self.token_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_ids is None:
            self.prompt_ids = value[0].tolist()
            self.on_prompt(len(self.prompt_ids))
            self.prompt_s = time.monotonic()
            return
        now = time.monotonic()
        self.token_s.append(now)
        self.output_ids.extend(value.flatten().tolist())
        if now > self.deadline_s:
            raise StepTimeout(f"the step's deadline passed after {len(self.output_ids)} tokens")

    def end(self) -> None:
        pass


def _typed(error: RuntimeError, phase: str) -> Exception:
    """CUDA's out-of-memory as ours, any other error as it is."""
    return OutOfMemory.from_cuda(error, phase) if is_cuda_oom(error) else error


def read_parallel(files: Sequence[Path], device: str) -> dict[str, torch.Tensor]:
    """All tensors of safetensors files, on one device: many threads read, pinned buffers carry.

    By fastsafetensors (Yoshimura et al., "Speeding up Model Loading with fastsafetensors", CLOUD 2025).
    """
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), torch.device(device), nogds=True, max_threads=16)
    loader.add_filenames({0: [str(f) for f in files]})
    buffers = loader.copy_files_to_device()
    # The tensors are views into the buffers, which must live as long as the model: they are not closed.
    return {name: buffers.get_tensor(name) for name in loader.get_keys()}


class Eager:
    """`devices` are torch device strings; `length` "fixed" makes exactly `tokens` ids, greedily.

    `loader`: "transformers" reads as `from_pretrained` does, "parallel" by `read_parallel`.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: str,
        devices: Sequence[str],
        length: str,
        tokens: int,
        account: Account,
        loader: str = "transformers",
    ) -> None:
        self.path = str(path)
        self.loader = loader
        self.dtype = getattr(torch, dtype)
        self.devices = list(devices)
        self.account = account
        self.tokens = tokens
        self.fixed = length == "fixed"
        self.generate_options: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens}
        self.context_tokens = 0
        self.chat: ChatHuggingFace | None = None

    def load(self) -> Loaded:
        began = time.monotonic()
        cuda = [torch.device(d) for d in self.devices if d.startswith("cuda")]
        for device in cuda:
            torch.zeros(1, device=device)
            torch.cuda.synchronize(device)
        context = time.monotonic()
        try:
            self.account.weights()
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            model = self._model()
            model.eval()
            # Greedy decoding reads none of these; a checkpoint that sets them would only be warned about.
            for name in ("temperature", "top_p", "top_k"):
                setattr(model.generation_config, name, None)
            if self.fixed:
                # What servers call ignore_eos: the end-of-text id is a token like any other.
                model.generation_config.pad_token_id = model.generation_config.eos_token_id
                model.generation_config.eos_token_id = None
            generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
            for device in cuda:
                torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise _typed(error, "load") from error
        self.context_tokens = model.config.max_position_embeddings
        self.model = model
        self.pipeline = HuggingFacePipeline(pipeline=generator)
        self.chat = ChatHuggingFace(llm=self.pipeline, tokenizer=tokenizer)
        return Loaded(context_s=context - began, load_s=time.monotonic() - context)

    def _model(self) -> PreTrainedModel:
        placement = {"": self.devices[0]} if len(self.devices) == 1 else "auto"
        if self.loader == "transformers":
            return AutoModelForCausalLM.from_pretrained(
                self.path, dtype=self.dtype, device_map=placement, local_files_only=True
            )
        config = AutoConfig.from_pretrained(self.path, local_files_only=True)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=read_parallel(weight_files(self.path), self.devices[0]),
            dtype=self.dtype,
            device_map=placement,
        )
        model.generation_config = GenerationConfig.from_pretrained(self.path, local_files_only=True)
        return model

    def complete(self, messages: list[BaseMessage], deadline_s: float) -> Completion:
        called = time.monotonic()
        recorder = None
        try:
            with self.account.sequence() as hold:
                recorder = Recorder(deadline_s, lambda prompt: hold(prompt + self.tokens))
                answer = self.chat.invoke(
                    messages,
                    pipeline_kwargs={
                        **self.call_options(),
                        "streamer": recorder,
                        "return_full_text": False,
                        # The template writes BOS itself; encoding its text again would add a second one.
                        "add_special_tokens": False,
                    },
                )
        except RuntimeError as error:
            raise _typed(error, "decode" if recorder and recorder.token_s else "prefill") from error
        return Completion(
            text=answer.content,
            prompt_ids=recorder.prompt_ids or [],
            output_ids=recorder.output_ids,
            called_s=called,
            prompt_s=recorder.prompt_s,
            token_s=recorder.token_s,
            ended_s=time.monotonic(),
        )

    def call_options(self) -> dict[str, Any]:
        """What `generate` is told in a call."""
        return self.generate_options

    def count_tokens(self, messages: list[BaseMessage]) -> int:
        prompt = self.chat._to_chat_prompt(messages)
        return len(self.chat.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def peaks(self) -> list[dict[str, float]]:
        return [
            {
                "allocated_peak_mib": torch.cuda.max_memory_allocated(device) / MIB,
                "reserved_peak_mib": torch.cuda.max_memory_reserved(device) / MIB,
            }
            for device in self.devices
            if device.startswith("cuda")
        ]


class Compiled(Eager):
    """Decoding through torch.compile with CUDA graphs, over a static cache of `cache_tokens`.

    Compiling happens in `load`, as a stage of its own, on the shapes that every later call has: prefill is
    eager, and a decode step is one token against the whole static cache.
    """

    def __init__(self, *, cache_tokens: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_tokens = cache_tokens
        self.generate_options["compile_config"] = CompileConfig(fullgraph=True, dynamic=False)

    def load(self) -> Loaded:
        loaded = super().load()
        began = time.monotonic()
        # One static cache for all calls: a new one would be another address for the recorded graphs.
        self.cache = StaticCache(config=self.model.config, max_cache_len=self.cache_tokens)
        prompt = torch.ones(1, 8, dtype=torch.long, device=self.devices[0])
        for _ in range(2):  # the first call compiles, the second records the graphs
            self.cache.reset()
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                **{**self.generate_options, "max_new_tokens": 8},
                past_key_values=self.cache,
            )
        torch.cuda.synchronize()
        return replace(loaded, compile_s=time.monotonic() - began)

    def call_options(self) -> dict[str, Any]:
        self.cache.reset()
        return {**self.generate_options, "past_key_values": self.cache}
