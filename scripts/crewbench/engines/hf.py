"""The eager engine: a Transformers text-generation pipeline behind LangChain's ChatHuggingFace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.messages import BaseMessage
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.generation.streamers import BaseStreamer

from crewbench.devices.budget import OutOfMemory, is_cuda_oom
from crewbench.engines import Account, Completion, Loaded, StepTimeout


MIB = 2**20


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


class Eager:
    """`devices` are torch device strings; `length` "fixed" makes exactly `tokens` ids, greedily."""

    def __init__(
        self,
        path: str | Path,
        dtype: str,
        devices: Sequence[str],
        length: str,
        tokens: int,
        account: Account,
    ) -> None:
        self.path = str(path)
        self.dtype = getattr(torch, dtype)
        self.devices = list(devices)
        self.account = account
        self.tokens = tokens
        self.generate_options: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens}
        if length == "fixed":
            self.generate_options["min_new_tokens"] = tokens
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
            model = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=self.dtype,
                device_map={"": self.devices[0]} if len(self.devices) == 1 else "auto",
                local_files_only=True,
            )
            model.eval()
            # Greedy decoding reads none of these; a checkpoint that sets them would only be warned about.
            for name in ("temperature", "top_p", "top_k"):
                setattr(model.generation_config, name, None)
            generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
            for device in cuda:
                torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise _typed(error, "load") from error
        self.context_tokens = model.config.max_position_embeddings
        self.pipeline = HuggingFacePipeline(pipeline=generator)
        self.chat = ChatHuggingFace(llm=self.pipeline, tokenizer=tokenizer)
        return Loaded(context_s=context - began, load_s=time.monotonic() - context)

    def complete(self, messages: list[BaseMessage], deadline_s: float) -> Completion:
        called = time.monotonic()
        recorder = None
        try:
            with self.account.sequence() as hold:
                recorder = Recorder(deadline_s, lambda prompt: hold(prompt + self.tokens))
                answer = self.chat.invoke(
                    messages,
                    pipeline_kwargs={
                        **self.generate_options,
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
