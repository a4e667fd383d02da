"""A checkpoint's copy on the node's own disk: whole or not there, made once, and what stops it is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crewbench.checkpoint import files, manifest, stage, synthetic
from crewbench.checkpoint.stage import StageError

ROOT = Path(__file__).parents[2]

ASK = """
import sys
from crewbench.checkpoint import manifest, stage
try:
    print(stage.stage(manifest.load(sys.argv[1]), sys.argv[1], stage.place(sys.argv[2], {})).copied)
except stage.StageError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    synthetic.build("tiny", 3, "bfloat16", out, shard_bytes=3 * 2**20)
    return out


@pytest.fixture
def scratch(tmp_path):
    place = tmp_path / "scratch"
    place.mkdir()
    return place


def ask(model, place, *wrap):
    """Stage in a process of its own."""
    return subprocess.Popen(
        [*wrap, sys.executable, "-c", ASK, str(model), str(place)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_directory_is_the_nodes(scratch):
    assert stage.place("$NEAR/scratch", {"NEAR": str(scratch.parent)}) == scratch
    assert stage.place("${NEAR}", {"NEAR": str(scratch)}) == scratch


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("$NEAR/x", "NEAR is not set on this node"),
        ("$HERE/none", r"\$HERE/none, here .*/none, which is no directory on this node: make it"),
        ("near", "must be an absolute path"),
        ("/near/$", r"write \$NAME"),
    ],
)
def test_a_directory_that_the_node_lacks_is_refused_and_not_made(scratch, said, why):
    with pytest.raises(StageError, match=why):
        stage.place(said, {"HERE": str(scratch)})
    assert not list(scratch.iterdir())


def test_a_copy_is_the_checkpoint_byte_for_byte_and_is_taken_the_next_time(model, scratch):
    found = manifest.load(model)
    first = stage.stage(found, model, scratch)
    copy = manifest.load(first.directory)
    assert first.copied and first.bytes == sum(entry["bytes"] for entry in found.files)
    assert {e["name"]: files.sha256(copy.directory(first.directory) / e["name"]) for e in copy.files} == {
        e["name"]: e["sha256"] for e in found.files
    }
    again = stage.stage(found, model, scratch)
    assert (again.directory, again.copied, again.bytes) == (first.directory, False, first.bytes)
    assert again.record()["file_system"]


def test_a_copy_can_be_evicted_and_warmed(model, scratch):
    found = manifest.load(model)
    shards = manifest.load(where := stage.stage(found, model, scratch).directory).weight_files(where)
    assert len(shards) == 3
    try:
        files.evict(shards)
    except files.PageCacheError:
        pytest.skip("the temporary directory lies in memory")
    assert files.warm(shards) >= files.WARM_SHARE


def test_processes_that_ask_at_once_get_one_copy(model, scratch):
    asked = [ask(model, scratch) for _ in range(3)]
    assert sorted(p.communicate()[0].strip() for p in asked) == ["False", "False", "True"]


def test_a_copy_that_is_not_whole_and_what_a_killed_one_left_are_made_anew(model, scratch):
    found = manifest.load(model)
    where = stage.stage(found, model, scratch).directory
    os.truncate(found_shard := manifest.load(where).weight_files(where)[0], 1)
    (where.parent / f"{where.name}.part").mkdir()
    assert stage.stage(found, model, scratch).copied
    assert found_shard.stat().st_size > 1
    assert sorted(p.name for p in where.parent.iterdir()) == [where.name, f"{where.name}.lock"]


def test_a_source_that_is_not_its_manifests_is_refused_and_nothing_stays(model, scratch, tmp_path):
    found = manifest.load(model)
    subprocess.run(["cp", "-r", str(model), str(tmp_path / "other")], check=True)
    shard = found.weight_files(tmp_path / "other")[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StageError, match=f"{shard.name} is not what its manifest says"):
        stage.stage(found, tmp_path / "other", scratch)
    assert [p.suffix for p in (scratch / f"crewbench-{os.getuid()}").iterdir()] == [".lock"]


MOUNTED = 'mount -t tmpfs -o {1} tmpfs {0} && "$@"; code=$?; ls {0}/*; exit $code'


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("limit", ["size=64k", "size=64m,nr_inodes=6"])
def test_a_full_disk_is_said_with_the_sizes_and_nothing_half_made_stays(model, scratch, limit):
    """Too little from the start, and used up while it copies."""
    wrap = (
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        MOUNTED.format(scratch, limit),
        "sh",
    )
    if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    process = ask(model, scratch, *wrap)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "has no room for the checkpoint: it takes" in err and "Traceback" not in err
    assert out.split() == [f"{manifest.load(model).sha256}.lock"]


def test_somebody_elses_directory_is_not_used(model, scratch, tmp_path):
    (scratch / f"crewbench-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(StageError, match="is not this user's directory"):
        stage.stage(manifest.load(model), model, scratch)
