"""Measures one check (quality.py): what an engine chose and from what, and what float32 says to it.

Each side runs in a process of its own, forked from one that has done the imports, so that a device is empty
again when the next side loads: the engine, a plain forward in its type, and one in float32. An engine that
cannot be loaded or asked is a result with a status, as in a trial.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crewbench.devices import nvml
from crewbench.devices.inventory import Device, DeviceError
from crewbench.engines import ENGINES, Call, Observed, compile_cache
from crewbench.execute.worker import Failure, Job, failure, pin
from crewbench.quality import Check, Messages, Numbers, compare
from crewbench.records import Status
from crewbench.runners import RUNNERS

if TYPE_CHECKING:
    import numpy as np

EXACT = "float32"
MEMORY_FREE_S = 60.0
IMPORTS = ("torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")
"""What every side needs: done once, in the process that the sides are forked from."""


class SideFailed(Exception):
    """A side gave nothing; `failed` says why."""

    def __init__(self, failed: Failure) -> None:
        self.failed = failed
        super().__init__(failed.error)


def measure(check: Check, model: Path, devices: Sequence[Device], scratch: Path) -> dict[str, Any]:
    """The status, numbers and ids of a check, as plain data. `devices` are leased, `model` is the
    checkpoint's directory, and what processes leave goes to `scratch`."""
    info = ENGINES[check.engine]
    found = {"status": Status.OK, "error": "", "unseen": info.unseen, "numbers": None, "output_ids": []}
    if info.unseen:
        return found
    if info.compile_cache:  # what this check compiles is no trial's to find
        os.environ.update(compile_cache.at(scratch / "compiled").environment)
    job = Job(
        worker="quality",
        engine=check.engine,
        model_path=str(model),
        dtype=check.dtype,
        devices=tuple(devices),
        concurrency=len(check.conversations) if RUNNERS[info.runners[0]].batches else 1,
        threads=check.threads,
        length="fixed",
        tokens=check.tokens,
        step_timeout_s=check.step_timeout_s,
        storage=str(scratch / "quality"),
        zygote=False,
        engine_options=check.options,
        load_timeout_s=check.load_timeout_s,
    )
    sides = Sides(devices, check.load_timeout_s + check.step_timeout_s, (*IMPORTS, info.module))
    try:
        prompts, seen = sides.run(answers, job, check.conversations)
        lines = [(ids, o.output_ids) for ids, o in zip(prompts, seen, strict=True)]
        plain = sides.run(along, model, check.dtype, devices, check.threads, lines)
        # Attention written out: no kernel of the engine's is in what it is judged by.
        exact = sides.run(along, model, EXACT, devices, check.threads, lines, "eager")
        numbers: Numbers = compare(seen, plain, exact)
    except SideFailed as error:
        return {**found, "status": error.failed.status, "error": error.failed.error}
    except ValueError as error:
        return {**found, "status": Status.ERROR, "error": str(error)}
    return {**found, "numbers": asdict(numbers), "output_ids": [o.output_ids for o in seen]}


class Sides:
    """Runs functions one after another, each in a process of its own on the same devices."""

    def __init__(self, devices: Sequence[Device], timeout_s: float, imports: Sequence[str]) -> None:
        self._devices, self._timeout_s = tuple(devices), timeout_s
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(imports))
        gpus = [d.uuid for d in devices if d.kind == "gpu"]
        self._free_mib = nvml.free_mib(gpus) if gpus else {}

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` gives. SideFailed with what it raised, how its process ended, or that it took too
        long."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        side = self._context.Process(target=_side, args=(theirs, self._devices, function, arguments))
        side.start()
        theirs.close()
        try:
            if not ours.poll(self._timeout_s):
                raise SideFailed(Failure(Status.TIMEOUT, f"not done within {self._timeout_s:g} s"))
            result = ours.recv()
        except EOFError:
            side.join()
            said = f"its process ended with exit code {side.exitcode}"
            raise SideFailed(Failure(Status.ERROR, said)) from None
        finally:
            side.kill()
            side.join()
            side.close()
            ours.close()
        if isinstance(result, Failure):
            raise SideFailed(result)
        if self._free_mib:  # a dead process's memory comes back a moment later
            with suppress(DeviceError):  # not known: the next side says whether it has room
                nvml.wait_until_free(self._free_mib, MEMORY_FREE_S)
        return result


def _side(
    conn: Connection, devices: Sequence[Device], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """A side's whole life."""
    try:
        result = function(*arguments)
    except BaseException as error:  # a library's SystemExit too
        traceback.print_exc()
        result = failure(error, devices)
    conn.send(result)
    os._exit(0)  # what a library left running does not hold it up


# What the sides do -------------------------------------------------------------------------------


def answers(job: Job, conversations: Sequence[Messages]) -> tuple[list[list[int]], list[Observed]]:
    """The prompts' ids, and what the job's engine chose for them, held as its first runner holds it."""
    prompts = prompt_ids(job.model_path, conversations)
    runner = RUNNERS[ENGINES[job.engine].runners[0]]
    with importlib.import_module(runner.module).held(job) as engine:
        deadline = time.monotonic() + job.step_timeout_s
        with ThreadPoolExecutor(job.concurrency) as pool:
            return prompts, list(pool.map(lambda ids: engine.observe(Call(ids), deadline), prompts))


def prompt_ids(model: str | Path, conversations: Sequence[Messages]) -> list[list[int]]:
    """Each conversation by the checkpoint's own template and tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    texts = [
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    # The template writes BOS itself; encoding its text again would add a second one.
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def along(
    model: Path,
    dtype: str,
    devices: Sequence[Device],
    threads: int,
    lines: Sequence[tuple[list[int], list[int]]],
    attention: str | None = None,
) -> list[np.ndarray]:
    """Logits (output ids × vocabulary, float32) that the checkpoint has for each output id of each line
    (prompt ids, output ids): a forward each, without a cache. What does not fit on the devices lies on the
    host and travels layer by layer."""
    torch_devices = pin(devices)
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # no TF32
    loaded = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=getattr(torch, dtype),
        device_map={"": "cpu"} if torch_devices == ["cpu"] else "auto",
        local_files_only=True,
        **({"attn_implementation": attention} if attention else {}),
    ).eval()
    found = []
    with torch.inference_mode():
        for prompt, output in lines:
            ids = torch.tensor([prompt + output[:-1]], device=torch_devices[0])
            logits = loaded(ids, use_cache=False).logits[0, len(prompt) - 1 :]
            found.append(logits.float().cpu().numpy())
    return found
