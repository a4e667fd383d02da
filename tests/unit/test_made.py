"""A count that outlives who counts."""

import os
import signal
import subprocess
import sys

from crewbench.execute import made
from crewbench.execute.made import Made

COUNTS = """
import os, signal, sys
from crewbench.execute.made import Made

count = Made(sys.argv[1])
for _ in range(5):
    count.one_more()
count.reset()
for _ in range(3):
    count.one_more()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_count_since_the_last_reset_is_there_after_its_process_was_killed(tmp_path):
    path = str(tmp_path / "made")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COUNTS, path], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert made.read(path) == 3


def test_where_nobody_can_count_there_is_no_count(tmp_path):
    path = str(tmp_path / "missing" / "made")
    for place in (None, path):
        Made(place).one_more()
        assert made.read(place) is None


def test_a_new_count_begins_with_none(tmp_path):
    path = str(tmp_path / "made")
    Made(path).one_more()
    assert made.read(path) == 1
    Made(path)
    assert made.read(path) == 0
