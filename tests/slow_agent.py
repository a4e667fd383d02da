"""A host on which Ray's first helper process takes longer to start than Ray waits for it, and on which what
`ray start` says comes in pieces."""

from __future__ import annotations

from pathlib import Path

DELAY_S = 20
"""Ray waits for 15."""

CUSTOMIZE = """
import builtins, sys, time
from pathlib import Path
from builtins import print as at_once

def in_pieces(*words, **settings):
    at_once(*words, **{{**settings, "flush": True}})
    if "Ray runtime started." in " ".join(map(str, words)):
        time.sleep(2)

if "ray.scripts.scripts" in sys.orig_argv:
    builtins.print = in_pieces

if any(word.endswith("dashboard/agent.py") for word in sys.orig_argv):
    try:
        Path({seen!r}).touch(exist_ok=False)
    except FileExistsError:
        pass
    else:
        time.sleep({delay})
"""


def once(path: Path) -> Path:
    """Python finds this directory on its path, and the first of Ray's agents sleeps. Returns what is there
    once it has."""
    seen = path / "an-agent-slept"
    (path / "sitecustomize.py").write_text(CUSTOMIZE.format(seen=str(seen), delay=DELAY_S))
    return seen
