"""The compiled engine: decoding by torch.compile with CUDA graphs over a static cache, as Transformers does.

Compiling is a stage of its own, on the shapes that every later call has: prefill stays eager, and a decode
step is one token against the whole cache.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig, StaticCache

from crewbench.devices.budget import OutOfMemory, is_cuda_oom
from crewbench.engines import Loaded
from crewbench.engines.hf import Eager


class Compiled(Eager):
    """`cache_tokens` is the length of the one static cache: prompt and output of a call must fit in it."""

    # One shape, recorded once: a plan of cuDNN's for it costs nothing later.
    cudnn_attention = True

    def __init__(self, *, cache_tokens: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_tokens = cache_tokens

    def load(self) -> Loaded:
        loaded = super().load()
        began = time.monotonic()
        try:
            self._compile()
        except RuntimeError as error:
            if is_cuda_oom(error):
                raise OutOfMemory.from_cuda(error, "load") from error
            raise
        return replace(loaded, compile_s=time.monotonic() - began)

    @torch.inference_mode()  # as calls are: what was compiled outside it would be compiled again by the first
    def _compile(self) -> None:
        """Two short generations: the first compiles, the second records the graphs.

        Graphs can be recorded only in the thread that imported torch's compiler, and calls come from others
        (pytorch#123177): whatever a call runs must have been recorded here."""
        prompt = torch.ones(1, 8, dtype=torch.long, device=self.devices[0])
        self.check_room(prompt.shape[1])
        # One cache for all calls: a new one would lie elsewhere, and recorded graphs know addresses.
        self.cache = StaticCache(config=self.model.config, max_cache_len=self.cache_tokens)
        for _ in range(2):
            self.model.generate(prompt, attention_mask=torch.ones_like(prompt), **self.call_options())
        self._synchronize()

    def check_room(self, prompt: int) -> None:
        # CUDA would find out in a kernel, after which this process could not use its device any more.
        if prompt + self.tokens > self.cache_tokens:
            raise ValueError(
                f"a prompt of {prompt} tokens and an output of up to {self.tokens} do not fit in the static "
                f"cache, which holds {self.cache_tokens}: raise cache_tokens"
            )

    def _generation(self, given: GenerationConfig) -> GenerationConfig:
        generation = super()._generation(given)
        generation.compile_config = CompileConfig(fullgraph=True, dynamic=False)
        return generation

    def call_options(self) -> dict[str, Any]:
        with torch.inference_mode():  # as the cache's tensors were made
            self.cache.reset()
        return {**super().call_options(), "past_key_values": self.cache}
