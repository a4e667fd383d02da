"""Ray on a Slurm job's nodes: what it is started with, and what is said where there is no job."""

import subprocess
import sys

from crewbench import several_hosts


def test_outside_of_a_job_the_command_is_not_run_and_the_script_to_submit_is_named(root, tmp_path):
    words = [sys.executable, root / "scripts/hosts.py", "touch", tmp_path / "began"]
    done = subprocess.run(words, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: this is no job of Slurm's: submit profiles/slurm/several-hosts.sbatch"
    )
    assert not (tmp_path / "began").exists()


def test_the_head_takes_a_free_port_and_the_others_are_told_it():
    head = several_hosts.ray_start("n1", "10.0.0.1", None)
    other = several_hosts.ray_start("n2", "10.0.0.2", "10.0.0.1:4321")
    assert "--head" in head and head[head.index("--port") + 1] == "0" and "--address" not in head
    assert "--head" not in other and other[other.index("--address") + 1] == "10.0.0.1:4321"
    for words, node, at in ((head, "n1", "10.0.0.1"), (other, "n2", "10.0.0.2")):
        assert words[words.index("--node-name") + 1] == node
        assert words[words.index("--node-ip-address") + 1] == at
