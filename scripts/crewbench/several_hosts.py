"""Ray on the nodes of a Slurm allocation, for as long as a command runs on the first of them.

One `srun` per node has Ray's processes there, so Slurm knows them and ends them with the job. Its task is
`stay`, which ends Ray when its input ends: however this process goes. A node is called as Slurm calls it, and
that is the `host` of the rows.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from crewbench import inert
from crewbench.devices import allocation
from crewbench.execute.actor import AUTO_ADDRESS
from crewbench.execute.cluster import OBJECT_STORE_MIB, QUIET, TOO_SLOW, TRIES
from crewbench.execute.ports import free_port
from crewbench.execute.surroundings import SCRIPTS

JOIN_S = 180.0
"""How long a node may take to join: Ray is imported from a file system that others read too."""

END_S, LOOK_S = 60.0, 0.2

TAIL = 15
"""Lines of a node's log that are shown when something is wrong there."""

JOINED = re.compile(r"Ray runtime started\.")
"""What `ray start` says when its node is known to the head."""

ERROR = "\tERR "
"""What `ray start` marks its errors with."""

ADDRESS = re.compile(r"ray start --address='([^']+)'")
"""Where the head tells the port that it took: some lines further on, which may come later."""

STEP = ("srun", "--overlap", "--nodes=1", "--ntasks=1", "--cpu-bind=none", "--kill-on-bad-exit=1")
"""A task that has all of its node: without --overlap the next one would wait for this one's end."""

SETTINGS = {
    **QUIET,
    "RAY_AUTH_MODE": "token",
    # Nothing is served that would have to be drained first.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


class HostsError(RuntimeError):
    """Ray does not run on all nodes. The text names the node and has the end of its log."""


def names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The allocation's nodes as Slurm calls them, this one first. HostsError outside of a job."""
    listed, own = environment.get("SLURM_JOB_NODELIST"), environment.get("SLURMD_NODENAME")
    if not listed or not own:
        raise HostsError("this is no job of Slurm's: submit profiles/slurm/several-hosts.sbatch with sbatch")
    found = _said("scontrol", "show", "hostnames", listed).split()
    return [own, *(name for name in found if name != own)]


def address(node: str, other: str) -> str:
    """The IPv4 address by which the node `other` reaches this one: Slurm's NodeAddr, looked up there if it is
    a name. Not here: a host's own name is often one of its loopback's (127.0.1.1)."""
    known = allocation.fields(_said("scontrol", "--oneliner", "show", "node", node)).get("NodeAddr", node)
    with suppress(ValueError):
        return str(ipaddress.ip_address(known))
    found = _said(*STEP, f"--nodelist={other}", "getent", "ahostsv4", known).split()
    if not found:
        raise HostsError(f"{other} finds no IPv4 address of {known}, which is node {node}'s NodeAddr")
    return found[0]


def _said(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostsError(f"{shlex.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def ray_start(node: str, at: str, head: str | None) -> list[str]:
    """The command that starts Ray on a node at its address and stays with it; `head` is the address and port
    of the head, None for the head itself, which is here. All ports are free ones: others may have a Ray."""
    given = {
        "--node-name": node,
        "--node-ip-address": at,
        "--object-store-memory": OBJECT_STORE_MIB * 2**20,
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--dashboard-agent-listen-port": 0,
    }
    if head is None:
        given |= {"--port": 0, "--include-dashboard": "false", "--ray-client-server-port": free_port()}
    else:
        given |= {"--address": head}
    words = [str(word) for pair in given.items() for word in pair]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words] + ["--head"] * (not head)


class Hosts:
    """Ray on these nodes, whose addresses are given; `place` is a directory for their logs."""

    def __init__(self, addresses: Mapping[str, str], place: Path) -> None:
        self.addresses = addresses
        self.environment = {**os.environ, **SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.place = place
        self.steps: dict[str, subprocess.Popen[bytes]] = {}
        self.tries: Counter[str] = Counter()

    def start(self, join_s: float) -> str:
        """Start Ray on all nodes. Returns its address; HostsError where one did not come within the time."""
        first, *others = self.addresses
        (said,) = self._join([first], join_s, None)
        self._join(others, join_s, said[1])
        return said[1]

    def _start(self, node: str, head: str | None) -> None:
        self.tries[node] += 1
        task = [sys.executable, "-m", __spec__.name, *ray_start(node, self.addresses[node], head)]
        with (self.place / node).open("wb") as log:
            self.steps[node] = subprocess.Popen(
                [*STEP, f"--nodelist={node}", *task],
                env={**self.environment, "PYTHONPATH": str(SCRIPTS)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is the command's
            )

    def _join(self, nodes: Sequence[str], join_s: float, head: str | None) -> list[re.Match[str]]:
        """Start Ray on these nodes, and wait until they have joined the head, or are the head itself and have
        told its address. Returns what each of them said of it."""
        until = time.monotonic() + join_s
        what, sign = (f" Ray at {head}", JOINED) if head else ("", ADDRESS)
        for node in nodes:
            self._start(node, head)
        while not all(said := [sign.search(self.log(node)) for node in nodes]):
            late = [node for node, found in zip(nodes, said, strict=True) if not found]
            # All of them: nobody can join a head that has ended.
            for node, step in self.steps.items():
                if (code := step.poll()) is None:
                    continue
                if node in late and TOO_SLOW in self.log(node) and self.tries[node] < TRIES:
                    slow = f"Ray on {node} took too long to start, and starts again"
                    print(slow, file=sys.stderr, flush=True)
                    self._start(node, head)
                    continue
                did = f"did not join{what}" if node in late else "joined and has ended"
                raise HostsError(f"{node} {did}: srun ended with {code}{self._tail(node)}")
            if time.monotonic() > until:
                tails = "".join(map(self._tail, self.steps))
                raise HostsError(f"{', '.join(late)} did not join{what} within {join_s:g} s{tails}")
            time.sleep(LOOK_S)
        return [found for found in said if found]

    def log(self, node: str) -> str:
        return (self.place / node).read_text(errors="replace")

    def _tail(self, node: str) -> str:
        lines = [line for line in self.log(node).splitlines() if line.strip()]
        # What went wrong stands far above the end: Ray shows the log of what it lost after it.
        errors = [line for line in lines[:-TAIL] if ERROR in line]
        shown = (inert.excerpt(line, 300) for line in [*errors[-TAIL:], *lines[-TAIL:]])
        return "".join(f"\n  {node}: {line}" for line in shown) or f"\n  {node}: (it said nothing)"

    def beside(self, command: subprocess.Popen[bytes]) -> int:
        """Wait for the command, and tell of a node that is lost meanwhile: its trials' rows will say so."""
        ended = os.pidfd_open(command.pid)
        watched = {os.pidfd_open(step.pid): node for node, step in self.steps.items()}
        while True:
            ready, _, _ = select.select([ended, *watched], [], [])
            for fd in watched.keys() & set(ready):
                node = watched.pop(fd)
                print(f"Ray on {node} has ended{self._tail(node)}", file=sys.stderr, flush=True)
            if ended in ready:
                return command.wait()

    def end(self) -> None:
        """End Ray on all nodes, and wait until it has."""
        for step in self.steps.values():
            step.stdin.close()
        until = time.monotonic() + END_S
        for node, step in self.steps.items():
            try:
                step.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"Ray on {node} does not end; Slurm ends it with the job", file=sys.stderr, flush=True)
                step.kill()
                step.wait()


def stay(words: Sequence[str]) -> int:
    """Ray on this node, in a directory of its own, until the input or Ray ends. Returns Ray's exit code."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    # The path is short: Ray's sockets lie below it. Whatever writes there last may still be ending.
    with tempfile.TemporaryDirectory(prefix="crewbench-", dir="/tmp", ignore_cleanup_errors=True) as place:
        ray = subprocess.Popen([*words, "--temp-dir", place], stdin=subprocess.DEVNULL)
        try:
            select.select([sys.stdin, os.pidfd_open(ray.pid)], [], [])
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ray.terminate()
            ray.wait()
        return ray.returncode


def run(command: Sequence[str], join_s: float = JOIN_S) -> int:
    """Run the command with Ray's address and token in its environment. Returns its exit code, 128 + the
    signal if one ended it. HostsError where Ray does not come up on every node."""
    running: subprocess.Popen[bytes] | None = None
    caught: list[int] = []

    def heed(number: int, frame: object) -> None:
        caught.append(number)
        if running is None:
            sys.exit(128 + number)
        running.send_signal(signal.SIGINT)  # Snakemake then ends what runs; for SIGTERM it would wait

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, heed)
    nodes = names()
    others = [*nodes[1:], nodes[0]]
    addresses = {node: address(node, other) for node, other in zip(nodes, others, strict=True)}
    with tempfile.TemporaryDirectory(prefix="crewbench-") as place:
        hosts = Hosts(addresses, Path(place))
        try:
            at = hosts.start(join_s)
            print(f"Ray at {at} on {', '.join(nodes)}", file=sys.stderr, flush=True)
            running = subprocess.Popen(list(command), env={**hosts.environment, AUTO_ADDRESS: at})
            code = hosts.beside(running)
        finally:
            hosts.end()
    if caught:
        return 128 + caught[0]
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(stay(sys.argv[1:]))
