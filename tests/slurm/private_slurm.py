"""A real Slurm of one's own on this machine: several nodes with fake GPUs, each with an address of its own on
the loopback, everything in one directory and as this user. No systemd, no cgroups, no accounting database.

Without cgroups a job's GPUs are an environment variable only, and Slurm's kill for memory is by accounting.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from crewbench.devices.allocation import fields
from crewbench.execute.ports import free_port

LONGEST_S = 120.0
"""How long to wait for something that must come, on a busy machine."""
PR_SET_PDEATHSIG = 1

CONF = """
ClusterName=private
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={place}/munge/socket
SlurmUser={user}
SlurmdUser={user}
{loopback}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
# CPUs and memory that this machine does not have.
SlurmdParameters=config_overrides
ReturnToService=2
DefMemPerCPU=100
MinJobAge=3600
KillWait=3
SlurmdTimeout=300
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
NodeName=DEFAULT CPUs=32 RealMemory=128000 Gres=gpu:h200:{gpus} State=UNKNOWN
{nodes}
PartitionName=gpu Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE State=UP
"""


class PrivateSlurm:
    """A running cluster, whose first two nodes have the feature nvlink. `stop` ends it and all of its jobs;
    so does the death of this process."""

    def __init__(self, place: Path, nodes: int = 8, gpus: int = 4) -> None:
        self.place = place
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(place / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool", "log", "dev", "munge"):
            (place / name).mkdir(parents=True)
        place.chmod(0o755)
        self._configure(gpus)
        # Steps of jobs outlive slurmd, and what is killed tidies nothing up.
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, str(os.getpid()), str(place)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        try:
            self._start_munge()
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self.until(lambda: self._idle() == nodes, "all nodes idle")
        except BaseException:
            self.stop()
            raise

    # ---- its parts

    def _configure(self, gpus: int) -> None:
        # Daemons are started again at their ports, long after.
        controller, *ports = (free_port() for _ in range(len(self.nodes) + 1))
        # slurmd wants a character device for each GPU, whose name ends in its number.
        for number in range(gpus):
            (self.place / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        here = socket.gethostname().split(".")[0]
        try:
            local = socket.gethostbyname(here).startswith("127.")
        except OSError:
            local = False
        # The flag binds to the address of this host's name. Nodes have addresses of their own, which only a
        # socket that is bound to none of them answers; munge keeps others out.
        loopback = "CommunicationParameters=NoCtldInAddrAny" if local else ""
        lines = [
            f"NodeName={node} NodeHostname={here} NodeAddr=127.0.0.{number} Port={port} "
            f"Feature={'nvlink' if node in self.nodes[:2] else 'pcie'}"
            for number, (node, port) in enumerate(zip(self.nodes, ports, strict=True), 2)
        ]
        text = CONF.format(
            controller=controller,
            place=self.place,
            user=subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip(),
            loopback=loopback,
            gpus=gpus,
            nodes="\n".join(lines),
        )
        (self.place / "slurm.conf").write_text(text)
        (self.place / "gres.conf").write_text(
            f"Name=gpu Type=h200 File={self.place}/dev/nvidia[0-{gpus - 1}]\n"
        )
        # Not used, but slurmd loads a plugin for cgroups all the same, and finding one out needs systemd.
        (self.place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _start(self, name: str, *words: str) -> None:
        """A daemon in the foreground, which dies with this process."""
        libc = ctypes.CDLL(None)
        with (self.place / "log" / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
            )

    def _end(self, name: str, number: int = signal.SIGTERM) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _start_munge(self) -> None:
        munge = self.place / "munge"
        munge.chmod(0o755)
        key = munge / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        self._start(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        )
        self.until((munge / "socket").exists, "munge's socket")

    def start_controller(self) -> None:
        """With the state that an earlier one left."""
        self._start("slurmctld", "slurmctld", "-D", "-i")
        self.until(lambda: "UP" in self.run("scontrol", "ping", check=False), "a controller that answers")

    def stop_controller(self) -> None:
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        (self.place / "spool" / node).mkdir(exist_ok=True)
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """A node that dies: its daemon and everything that ran on it, at once, and Slurm notices."""
        self._end(f"slurmd-{node}", signal.SIGKILL)
        # Before its processes end: what survives of the node would report how they did.
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        for pid in processes(self.place, f"SLURMD_NODENAME={node}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def regain_node(self, node: str) -> None:
        self.start_node(node)
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    # ---- what it says

    def run(self, *words: str, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """What one of Slurm's commands prints, there and with this in its environment."""
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**self.environment, "SLURM_TIME_FORMAT": "%s", **environment},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def _idle(self) -> int:
        return len(set(self.run("sinfo", "-hN", "-t", "idle", "-o", "%N", check=False).split()))

    def address(self, node: str) -> str:
        return fields(self.run("scontrol", "--oneliner", "show", "node", node))["NodeAddr"]

    def jobs(self, *states: str) -> dict[str, dict[str, str]]:
        """Job id -> its fields as `scontrol show job` has them; of all jobs that are remembered, or in one
        of `states`."""
        found = (
            fields(line) for line in self.run("scontrol", "-o", "show", "jobs", check=False).splitlines()
        )
        return {f["JobId"]: f for f in found if "JobId" in f and (not states or f["JobState"] in states)}

    def until(self, look: Callable[[], object], what: str, seconds: float = LONGEST_S) -> object:
        """Look until there is something to see, and return it."""
        end = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < end, f"{what}: not seen\n{self.logs()}"
            time.sleep(0.05)
        return found

    def logs(self) -> str:
        paths = sorted((self.place / "log").glob("*.log"))
        return "".join(f"\n== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in paths)

    # ---- the end

    def clear(self) -> None:
        """Cancel all jobs, and wait until none is left."""
        self.run("scancel", f"--user={os.getuid()}", check=False)
        self.wait_empty()

    def wait_empty(self) -> None:
        """Wait until no job waits, runs or ends."""
        self.until(lambda: not self.run("squeue", "-h", check=False).strip(), "an empty queue")

    def stop(self) -> None:
        """End jobs, daemons and whatever a job left."""
        if "slurmctld" in self._daemons:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                self.clear()
        for name in reversed(list(self._daemons)):
            self._end(name)
        self._keeper.terminate()
        self._keeper.wait()
        end(self.place)


def end(place: Path) -> None:
    """Kill whatever belongs to the cluster there."""
    for pid in processes(place):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(place: Path, mark: str = "") -> list[int]:
    """The processes of a cluster, those whose environment holds the mark."""
    wanted = {f"SLURM_CONF={place}/slurm.conf".encode(), *([mark.encode()] if mark else [])}
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if wanted <= set(Path(entry.path, "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


def keep(pid: int, place: Path) -> None:
    """End the cluster when the process that started it is gone, however that went."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])
    while processes(place):
        end(place)
        time.sleep(0.1)


if __name__ == "__main__":
    keep(int(sys.argv[1]), Path(sys.argv[2]))
