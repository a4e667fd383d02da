"""TCP ports of the loopback for servers that bind them later than they are told them."""

from __future__ import annotations

import socket
from pathlib import Path
from secrets import SystemRandom

from crewbench.engines.openai import LOCAL

OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From which port to which Linux gives ports to outgoing connections."""

LOWEST = 10000
"""Below, services have numbers of their own."""

TRIES = 100

_given: set[int] = set()


def taken(port: int) -> str:
    """Why nobody can listen at this port now, in the system's words; empty if one can."""
    with socket.socket() as probe:
        # As servers do: what an earlier one left behind in TIME_WAIT is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def free_port() -> int:
    """A port that nobody has now and no outgoing connection gets, another one at each call in a process.

    A large model's server binds its port a minute after it was chosen: one that the system chose may be an
    outgoing connection's by then. Where outgoing connections have all ports, the system chooses.
    """
    lowest_outgoing = int(OUTGOING.read_text().split()[0])
    quiet = range(LOWEST, lowest_outgoing)
    for port in SystemRandom().sample(quiet, min(TRIES, len(quiet))):
        if port not in _given and not taken(port):
            _given.add(port)
            return port
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]
