"""A Ray that somebody else has started, as its own command starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from crewbench.execute import cluster
from crewbench.execute.ports import free_port

COMMON = {
    "--min-worker-port": 0,
    "--max-worker-port": 0,
    "--dashboard-agent-listen-port": 0,
    "--object-store-memory": cluster.OBJECT_STORE_MIB * 2**20,
}


HEAD = {"--include-dashboard": "false", "--dashboard-port": 0}


def start(
    log: Path, environment: Mapping[str, str], options: Mapping[str, object], head: bool = False
) -> None:
    """`ray start`, again where this machine was too busy for it."""
    given = COMMON | dict(options)
    if head:
        given |= HEAD | {"--ray-client-server-port": free_port()}
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
    command += ["--head"] * head + [str(word) for pair in given.items() for word in pair]
    for _ in range(cluster.TRIES):
        with log.open("w") as file:  # not a pipe: what it starts would keep it open
            done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
        if done.returncode == 0:
            return
        if cluster.TOO_SLOW not in log.read_text():
            break
    raise AssertionError(log.read_text())
