"""Checkpoints from elsewhere: checked, described, and refused with the remedy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crewbench.checkpoint import manifest, synthetic
from crewbench.checkpoint.files import CheckpointError, weight_files

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    out = tmp_path_factory.mktemp("sharded")
    synthetic.build("tiny", 3, "bfloat16", out, shard_bytes=3 * 2**20)
    return out / "weights"


@pytest.fixture
def mine(sharded, tmp_path):
    return Path(shutil.copytree(sharded, tmp_path / "mine"))


def test_a_local_directory_is_described_like_a_synthetic_one(mine, sharded):
    local = manifest.local("mine", mine)
    built = manifest.load(sharded.parent)
    assert local.sha256 == built.sha256
    assert (local.parameters, local.weights_bytes, local.dtype) == (3_934_464, 2 * 3_934_464, "bfloat16")
    assert local.architecture == built.architecture
    assert (local.kind, local.random_weights, local.path) == ("local", False, str(mine))


def test_the_same_weights_in_other_files_are_left_out(mine):
    before = manifest.local("mine", mine)
    for name in ("consolidated.safetensors", "pytorch_model.bin"):
        (mine / name).write_bytes(b"again")
    assert manifest.local("mine", mine) == before
    assert all(p.name.startswith("model-") for p in weight_files(mine))


def test_any_changed_byte_changes_the_hash(mine):
    before = manifest.local("mine", mine).sha256
    shard = mine / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert manifest.local("mine", mine).sha256 != before


def test_a_missing_shard_is_named_with_the_remedy(mine):
    (mine / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors is missing.*hf download"):
        manifest.local("mine", mine)


def test_a_shard_that_was_not_copied_whole_is_named(mine):
    shard = mine / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="model-00003-of-00003.safetensors has .* bytes instead of"):
        manifest.local("mine", mine)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda d: (d / "config.json").write_text("{}"), "names no architectures"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda d: (d / "chat_template.jinja").unlink(), "no chat template"),
        (lambda d: (d / "model.safetensors.index.json").unlink(), "neither model.safetensors nor"),
        (lambda d: (d / "model.safetensors.index.json").write_text("[]"), "no index of shards"),
        (lambda d: (d / "model-00001-of-00003.safetensors").write_bytes(b"x"), "no safetensors file"),
    ],
)
def test_what_is_missing_is_named(mine, spoil, words):
    spoil(mine)
    with pytest.raises(CheckpointError, match=words):
        manifest.local("mine", mine)


def test_a_template_in_the_tokenizers_config_counts_too(mine):
    config = json.loads((mine / "tokenizer_config.json").read_text())
    config["chat_template"] = (mine / "chat_template.jinja").read_text()
    (mine / "tokenizer_config.json").write_text(json.dumps(config))
    (mine / "chat_template.jinja").unlink()
    assert manifest.local("mine", mine).parameters == 3_934_464


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is no directory"):
        manifest.local("mine", tmp_path / "nowhere")


def test_a_manifest_is_believed_only_while_its_files_are_whole(tmp_path):
    with pytest.raises(CheckpointError, match="manifest.json is missing: run scripts/model.py"):
        manifest.load(tmp_path)
    synthetic.build("tiny", 1, "float32", tmp_path)
    weights = tmp_path / "weights/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"has {len(content) - 1} bytes instead of {len(content)}"):
        manifest.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"model_id": "half')
    with pytest.raises(CheckpointError, match="is no manifest"):
        manifest.load(tmp_path)


def test_a_checkpoint_in_the_hubs_cache_is_taken_from_there(mine, tmp_path, monkeypatch):
    # The cache's own layout: blobs, snapshots of links to them, and a ref with the commit.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub/models--some--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "blobs").mkdir()
    for file in mine.iterdir():
        shutil.move(file, repo / "blobs" / file.name)
        (repo / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{file.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = manifest.hub("m", "some/model", None)
    assert found.parameters == 3_934_464
    assert found.source == {"repo": "some/model", "revision": commit}


def test_a_checkpoint_that_is_not_cached_names_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download some/model --revision v1"):
        manifest.hub("m", "some/model", "v1")


def test_the_rule_script_says_what_is_wrong_in_one_line(tmp_path):
    spec = json.dumps({"kind": "local", "path": str(tmp_path / "nowhere")})
    command = [sys.executable, SCRIPTS / "model.py", "--spec", spec, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("model: model.path")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
