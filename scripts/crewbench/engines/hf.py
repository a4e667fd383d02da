"""The eager engine: a Transformers text-generation pipeline behind LangChain's ChatHuggingFace."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from langchain_core.messages import BaseMessage
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from crewbench.checkpoint.files import weight_files
from crewbench.devices.budget import OutOfMemory, is_cuda_oom
from crewbench.engines import Account, Call, Completion, Loaded, Observed, StepTimeout, weights

MIB = 2**20
NO_LIMIT = 2**50
"""Bytes that no device has."""

logging.disable_progress_bar()
# tqdm would make a named semaphore for bars of several processes, and workers end without freeing it.
tqdm.set_lock(threading.RLock())


class Recorder(BaseStreamer):
    """Takes the ids out of `generate` as they appear, with the time of each.

    `put` gets the prompt first and then one id at a time, already on the host: the copy to the host is
    generate's own synchronisation, so no further one is added.
    """

    def __init__(
        self, deadline_s: float, on_prompt: Callable[[int], None], on_token: Callable[[], None] = lambda: None
    ) -> None:
        self.deadline_s = deadline_s
        self.on_prompt = on_prompt
        self.on_token = on_token
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
        self.on_token()
        if now > self.deadline_s:
            raise StepTimeout(f"the step's deadline passed after {len(self.output_ids)} tokens")

    def end(self) -> None:
        pass

    def completion(self, text: str, called_s: float) -> Completion:
        """The call until now."""
        return Completion(
            text=text,
            prompt_ids=self.prompt_ids or [],
            output_ids=self.output_ids,
            called_s=called_s,
            prompt_s=self.prompt_s,
            token_s=self.token_s,
            ended_s=time.monotonic(),
        )


def _typed(error: RuntimeError, phase: str) -> Exception:
    """CUDA's out-of-memory as ours, any other error as it is."""
    return OutOfMemory.from_cuda(error, phase) if is_cuda_oom(error) else error


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


class Eager:
    """`devices` are torch device strings; over several the layers are spread in equal shares.

    `length` "fixed" makes exactly `tokens` ids, greedily.

    `loader`: "transformers" reads as `from_pretrained` does, "parallel" as weights.py does. `on_token` is
    called after each output id.

    `cudnn_attention`: whether torch may choose cuDNN's attention, as it does by itself on Hopper. cuDNN makes
    a plan for each length of the KV cache and keeps it for the thread that asked; CrewAI makes every call
    from a new thread, so each decoded token would pay for a plan in every layer.
    """

    cudnn_attention = False

    def __init__(
        self,
        path: str | Path,
        dtype: str,
        devices: Sequence[str],
        length: str,
        tokens: int,
        account: Account,
        loader: str = "transformers",
        cudnn_attention: bool | None = None,
        on_token: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_token = on_token
        self.path = str(path)
        if cudnn_attention is not None:
            self.cudnn_attention = cudnn_attention
        self.loader = loader
        self.dtype = getattr(torch, dtype)
        self.devices = list(devices)
        self.account = account
        self.tokens = tokens
        self.fixed = length == "fixed"
        self.context_tokens = 0
        self.chat: ChatHuggingFace | None = None

    def load(self) -> Loaded:
        began = time.monotonic()
        torch.backends.cuda.enable_cudnn_sdp(self.cudnn_attention)
        cuda = [torch.device(d) for d in self.devices if d.startswith("cuda")]
        try:
            for device in cuda:  # a full device has no room for a context either
                torch.zeros(1, device=device)
                torch.cuda.synchronize(device)
            context = time.monotonic()
            self.account.weights()
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            model = self._model()
            model.eval()
            self.generation = self._generation(model.generation_config)
            # `generate` takes from here whatever a call leaves unset: an end of text, a penalty.
            model.generation_config = GenerationConfig()
            generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
            self._synchronize()
        except RuntimeError as error:
            raise _typed(error, "load") from error
        self.context_tokens = model.config.max_position_embeddings
        self.model = model
        self.pipeline = HuggingFacePipeline(pipeline=generator)
        self.chat = ChatHuggingFace(llm=self.pipeline, tokenizer=tokenizer)
        return Loaded(context_s=context - began, load_s=time.monotonic() - context)

    def _synchronize(self) -> None:
        """Wait until the GPUs have done what they were told; a CPU has."""
        for device in self.devices:
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)

    def _model(self) -> PreTrainedModel:
        if self.loader == "transformers":
            spread = len(self.devices) > 1
            return AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=self.dtype,
                device_map="auto" if spread else {"": self.devices[0]},
                # Equal shares, whatever is free now. Told of limits, Accelerate would leave on the disk what
                # is over them; so what does not fit is the device's own out of memory.
                max_memory=dict.fromkeys(range(len(self.devices)), NO_LIMIT) if spread else None,
                local_files_only=True,
            )
        if len(self.devices) > 1:
            raise ValueError(f"loader {self.loader} reads onto one device, not onto {self.devices}")
        config = AutoConfig.from_pretrained(self.path, local_files_only=True)
        # from_pretrained would reserve room for a second copy before it takes over the first.
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        tensors = weights.read(weight_files(self.path), self.devices[0])
        tensors = {name: tensor.to(self.dtype) for name, tensor in tensors.items()}
        _, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        model.tie_weights()
        empty = [name for name, tensor in model.named_parameters() if tensor.is_meta]
        if empty or unexpected:
            raise ValueError(f"{self.path} has no {empty[:3]} and, not wanted, {unexpected[:3]}")
        for module in model.modules():  # buffers that are computed, not stored
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.devices[0]))
        model.generation_config = GenerationConfig.from_pretrained(self.path, local_files_only=True)
        return model

    def complete(self, messages: list[BaseMessage], deadline_s: float) -> Completion:
        called = time.monotonic()
        recorder = None
        try:
            with self.account.sequence() as hold, torch.inference_mode():
                recorder = self._recorder(deadline_s, hold)
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
        except Exception as error:
            typed = error
            if isinstance(error, RuntimeError):
                typed = _typed(error, "decode" if recorder and recorder.token_s else "prefill")
            if recorder is not None and recorder.prompt_ids is not None:
                typed.completion = recorder.completion("", called)
            if typed is error:
                raise
            raise typed from error
        return recorder.completion(answer.content, called)

    def replay(self, call: Call, deadline_s: float) -> Completion:
        called = time.monotonic()
        recorder = None
        try:
            with self.account.sequence() as hold:
                recorder = self._recorder(deadline_s, hold)
                self._generate(call, recorder, self.call_options())
        except RuntimeError as error:
            raise _typed(error, "decode" if recorder and recorder.token_s else "prefill") from error
        return recorder.completion("", called)

    def observe(self, call: Call, deadline_s: float) -> Observed:
        recorder = self._recorder(deadline_s)
        options = self.call_options()
        generation = copy.deepcopy(options["generation_config"])
        generation.update(output_logits=True, return_dict_in_generate=True)
        try:
            made = self._generate(call, recorder, {**options, "generation_config": generation})
        except RuntimeError as error:
            raise _typed(error, "decode" if recorder.token_s else "prefill") from error
        return Observed(recorder.output_ids, torch.cat(made.logits).float().cpu().numpy())

    def check_room(self, prompt: int) -> None:
        """ValueError where a prompt of so many tokens leaves its output no room; here the device says so."""

    def _recorder(self, deadline_s: float, hold: Callable[[int], None] = lambda tokens: None) -> Recorder:
        def on_prompt(prompt: int) -> None:
            self.check_room(prompt)
            hold(prompt + self.tokens)

        return Recorder(deadline_s, on_prompt, self.on_token)

    def _generate(self, call: Call, recorder: Recorder, options: dict[str, Any]) -> Any:
        """What `generate` gives for the call's prompt."""
        with torch.inference_mode():
            ids = torch.tensor([call.prompt_ids], device=self.devices[0])
            return self.model.generate(ids, attention_mask=torch.ones_like(ids), streamer=recorder, **options)

    def _generation(self, given: GenerationConfig) -> GenerationConfig:
        """Greedy, and all that one call is told: nothing of the checkpoint's own sampling is left."""
        ends = given.eos_token_id
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.tokens,
            # Without an end the length is fixed, as servers' ignore_eos: the end's id is one like any other.
            eos_token_id=None if self.fixed else ends,
            bos_token_id=given.bos_token_id,
            pad_token_id=given.pad_token_id if given.pad_token_id is not None else _first(ends),
        )

    def call_options(self) -> dict[str, Any]:
        """What `generate` is told in a call."""
        return {"generation_config": self.generation}

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
