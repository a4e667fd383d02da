"""torch.compile really keeps and finds its work where a trial tells it to."""

import os
import subprocess
import sys

import pytest

from crewbench.engines import compile_cache

COMPILE = """
import torch
from torch._dynamo.utils import counters

def f(x):
    return torch.nn.functional.softmax(x @ x.T, -1).sum(0) * 3 + x.cos().mean()

torch.compile(f, fullgraph=True)(torch.ones(16, 16))
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


def compile_in_a_new_process(cache) -> list[int]:
    """Hits in the caches of graphs."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **cache.environment},
    )
    return [int(hits) for hits in done.stdout.split()]


@pytest.mark.needs("g++")
def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    first = compile_cache.at(tmp_path / "kept")
    assert first.state == "empty"
    assert sum(compile_in_a_new_process(first)) == 0
    then = compile_cache.at(tmp_path / "kept")
    assert then.state == "filled"
    assert sum(compile_in_a_new_process(then)) >= 1
    assert then.record()["files_after"] == then.files
