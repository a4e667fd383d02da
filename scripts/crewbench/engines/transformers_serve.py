"""The server that comes with Transformers, with continuous batching: runs on a GPU and on a CPU.

It says neither which ids it made nor how much of its cache is in use; tokens are counted by its `usage`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crewbench.engines.openai import LOCAL, Line, Server, Start

BLOCK_TOKENS = 32
"""Tokens in a block of its paged cache; on a CPU its size must be given, or it takes most of the memory."""

CPU_CONTEXT_TOKENS = 1024
SHARE_OF_FREE = 0.9
"""What its cache takes of a GPU's free memory, its own default. What a budget forbids is not free."""


@dataclass(slots=True)
class TransformersServe(Server):
    def command(self) -> list[str]:
        cache = ["--cb-max-memory-percent", str(SHARE_OF_FREE)]
        if self.devices[0] == "cpu":
            blocks = -(-CPU_CONTEXT_TOKENS // BLOCK_TOKENS) * self.concurrency
            cache = ["--cb-block-size", str(BLOCK_TOKENS), "--cb-num-blocks", str(blocks)]
        shares = self.options.get("prefix_cache")
        program = "transformers.cli.transformers" if shares else "crewbench.engines.transformers_start"
        return [
            *(sys.executable, "-m", program, "serve", self.path),
            *("--continuous-batching", "--device", self.devices[0], "--dtype", self.dtype),
            *("--host", LOCAL, "--port", str(self.port), *cache),
        ]

    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.threads)} if self.devices[0] == "cpu" else {}

    def understood(self, lines: Sequence[Line]) -> Start:
        began = _first(lines, r"Loading .+@")
        ended = _first(lines, r"Started server process")
        return Start(load_s=None if began is None or ended is None else ended - began)

    def chat(self, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        generation: dict[str, Any] = {"max_new_tokens": self.tokens, "do_sample": False}
        # Its batching knows no minimum length; an id that no vocabulary has never ends the text. What the
        # checkpoint says of generating counts for nothing here, and that includes the text's end.
        generation["eos_token_id"] = -1 if self.fixed or self.ends is None else self.ends
        return "/v1/chat/completions", {
            "model": self.path,
            "messages": messages,
            "stream": True,
            "max_tokens": self.tokens,
            "temperature": 0.0,
            "generation_config": json.dumps(generation),
        }


def _first(lines: Sequence[Line], pattern: str) -> float | None:
    return next((at for at, text in lines if re.search(pattern, text)), None)
