"""A synthetic checkpoint is a real Mistral, the same bytes every time, whole or not there at all."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralForCausalLM

from crewbench.checkpoint import footprint, manifest, synthetic
from crewbench.checkpoint.files import CheckpointError, sha256

SCRIPTS = Path(__file__).parents[2] / "scripts"
MESSAGES = [
    {"role": "system", "content": "You are an architect."},
    {"role": "user", "content": "Explain the concept and challenges of multi-agent multi-GPU execution."},
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    synthetic.build("tiny", 7, "float32", out)
    return out


@pytest.fixture(scope="module")
def tokenizer(built):
    return AutoTokenizer.from_pretrained(built / "weights", local_files_only=True)


@pytest.fixture(scope="module")
def model(built):
    return AutoModelForCausalLM.from_pretrained(built / "weights", local_files_only=True).eval()


def answer(model, tokenizer, role, tokens=16):
    messages = [{"role": "system", "content": f"You are {role}."}, MESSAGES[1]]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return made[0, ids["input_ids"].shape[1] :]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(built, tmp_path):
    again = synthetic.build("tiny", 7, "float32", tmp_path / "again")
    other = synthetic.build("tiny", 8, "float32", tmp_path / "other")
    assert again == manifest.load(built)
    assert (tmp_path / "again/manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
    assert other.sha256 != again.sha256


def test_the_bytes_are_these_on_every_machine(built):
    # A number that changes only when the checkpoint does: then every stored trial is of another model.
    weights = sha256(built / "weights/model.safetensors")
    assert weights == "8e57a7f7d33df17c85ef49bdd9f70eb1ddde9c69b28e149216be12318892f395"


def test_the_bytes_do_not_depend_on_hash_seed_or_threads(built, tmp_path):
    code = (
        f"from crewbench.checkpoint import synthetic as s; s.build('tiny', 7, 'float32', {str(tmp_path)!r})"
    )
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert manifest.load(tmp_path).sha256 == manifest.load(built).sha256


def test_sharding_changes_the_files_and_no_weight(built, tmp_path):
    sharded = synthetic.build("tiny", 7, "float32", tmp_path, shard_bytes=5 * 2**20)
    names = [f["name"] for f in sharded.files if f["name"].endswith(".safetensors")]
    assert names == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    whole = safe_open(built / "weights/model.safetensors", "pt")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "weights", local_files_only=True).state_dict()
    assert set(loaded) == set(whole.keys())
    assert all(torch.equal(loaded[name], whole.get_tensor(name)) for name in loaded)


def test_it_is_a_mistral_of_a_few_million_parameters(model, built):
    described = manifest.load(built)
    assert isinstance(model, MistralForCausalLM)
    assert sum(p.numel() for p in model.parameters()) == described.parameters
    assert described.weights_bytes == 4 * described.parameters
    assert 8 * 2**20 < described.weights_bytes < 20 * 2**20
    assert described.random_weights
    assert described.dtype == "float32"
    assert model.config.num_attention_heads == 4 * model.config.num_key_value_heads


def test_the_weights_look_drawn_from_the_configs_range(model):
    w = model.model.embed_tokens.weight.detach()
    std = model.config.initializer_range
    assert w.std().item() == pytest.approx(std, rel=0.02)
    assert abs(w.mean().item()) < 0.01 * std
    q, k = model.model.layers[0].self_attn.q_proj.weight, model.model.layers[1].self_attn.q_proj.weight
    assert abs(torch.corrcoef(torch.stack([q.flatten(), k.flatten()]))[0, 1].item()) < 0.02
    assert torch.equal(model.model.norm.weight, torch.ones(model.config.hidden_size))


def test_mistral_7b_has_the_shapes_of_the_original():
    sizes = synthetic.SHAPES["mistral-7b"]
    with torch.device("meta"):
        real = MistralForCausalLM(AutoConfig.for_model(**synthetic._config(sizes, "bfloat16")))
    assert {n: tuple(p.shape) for n, p in real.named_parameters()} == dict(synthetic.tensors(sizes))
    assert sum(p.numel() for p in real.parameters()) == 7_248_023_552  # that of mistralai/Mistral-7B-v0.3
    vocabulary, merges = synthetic._vocabulary(sizes.vocab_size)
    assert len(vocabulary) == 32768
    assert all(a + b in vocabulary for a, b in merges)


def test_the_answer_depends_on_the_prompt_and_repeats_exactly(model, tokenizer):
    roles = ("Product Manager", "Data Engineer", "Security Specialist")
    answers = [answer(model, tokenizer, role).tolist() for role in roles]
    assert len({tuple(a) for a in answers}) == 3
    assert answers == [answer(model, tokenizer, role).tolist() for role in roles]


def test_an_answer_is_never_empty_text(model, tokenizer, built):
    described = manifest.load(built)
    unseen = synthetic._unseen(tokenizer.backend_tokenizer)
    assert set(range(5)) <= set(unseen)
    assert torch.count_nonzero(model.lm_head.weight[unseen]) == 0
    for i in set(range(described.architecture["vocab_size"])) - set(unseen):
        assert tokenizer.decode([i], skip_special_tokens=True).strip()


def test_the_tokenizer_knows_every_id_and_any_text(tokenizer):
    assert len(tokenizer) == 1024
    text = "Explain: 8 agents, naïve caching → «fast»\n\tprint('ok') 日本語"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_like_mistrals_own_the_tokenizer_adds_bos_and_the_template_writes_it(tokenizer):
    assert tokenizer("hello")["input_ids"][0] == 1
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert text.startswith("<s>[INST] You are an architect.\n\nExplain")
    assert text.endswith("execution.[/INST]")
    ids = tokenizer.apply_chat_template(MESSAGES, return_dict=True)["input_ids"]
    assert ids.count(1) == 1
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_template_takes_longer_chats_and_refuses_broken_ones(tokenizer):
    chat = [*MESSAGES, {"role": "assistant", "content": "Fine."}, {"role": "user", "content": "More."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text.endswith("execution.[/INST] Fine.</s>[INST] More.[/INST]")
    for broken in (
        [*MESSAGES, MESSAGES[1]],
        [{"role": "assistant", "content": "Hi."}],
        [*MESSAGES, MESSAGES[0]],
    ):
        with pytest.raises(jinja2.TemplateError, match="alternate"):
            tokenizer.apply_chat_template(broken, tokenize=False)


def test_a_chain_of_eight_agents_fits_its_context(model):
    assert model.config.max_position_embeddings >= 4096
    assert model.config.sliding_window is None


def test_a_full_disk_leaves_no_manifest_and_no_half_checkpoint(tmp_path):
    synthetic.build("tiny", 1, "float32", tmp_path)
    code = (
        "import resource\nfrom crewbench.checkpoint import synthetic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        f"try:\n    synthetic.build('tiny', 2, 'float32', {str(tmp_path)!r})\n"
        "except OSError as error:\n    print(error.errno)"
    )
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    said = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert int(said.stdout) == errno.EFBIG
    assert not (tmp_path / "manifest.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path):
    (tmp_path / ".weights.abc").mkdir()
    (tmp_path / ".weights.abc/model.safetensors").write_bytes(b"half")
    synthetic.build("tiny", 1, "float32", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "weights"]


@pytest.mark.parametrize(("shape", "dtype"), [("huge", "float32"), ("tiny", "int8")])
def test_an_unknown_shape_or_dtype_is_named(shape, dtype, tmp_path):
    with pytest.raises(CheckpointError, match="huge|int8"):
        synthetic.build(shape, 1, dtype, tmp_path)


def test_the_cache_grows_by_the_predicted_bytes_a_token(model, tokenizer, built):
    described = manifest.load(built)
    ids = tokenizer.apply_chat_template(MESSAGES, return_tensors="pt", return_dict=True)
    cache = model(**ids, use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    tokens = ids["input_ids"].shape[1]
    assert held == tokens * footprint.kv_bytes_per_token(described.architecture, "float32")
    assert footprint.kv_mib(described, tokens, 3) * 2**20 == 3 * held
    assert footprint.predicted_mib(described, tokens, 3, 500) == pytest.approx(
        (described.weights_bytes + 3 * held) / 2**20 + 500
    )


def test_a_token_reads_all_weights_but_the_input_embedding(built):
    described = manifest.load(built)
    sizes = described.architecture
    embedding = 4 * sizes["vocab_size"] * sizes["hidden_size"]
    assert sizes["tied_embeddings"] is False
    assert footprint.decode_bytes(described) == described.weights_bytes - embedding
    assert footprint.decode_bytes(described, "bfloat16") * 2 == footprint.decode_bytes(described)


def test_an_embedding_that_is_the_output_projection_too_is_read_whole(built):
    described = manifest.load(built)
    tied = replace(described, architecture={**described.architecture, "tied_embeddings": True})
    assert footprint.decode_bytes(tied) == described.weights_bytes


def test_a_7b_copy_is_predicted_as_known():
    sizes = synthetic._config(synthetic.SHAPES["mistral-7b"], "bfloat16")
    assert footprint.kv_bytes_per_token(sizes, "bfloat16") == 128 * 1024  # 2 · 32 · 8 · 128 · 2


def test_loading_as_another_dtype_halves_the_prediction(built):
    described = manifest.load(built)
    assert footprint.weights_bytes(described, "bfloat16") * 2 == described.weights_bytes
    assert footprint.predicted_mib(described, 100, dtype="bfloat16") * 2 == footprint.predicted_mib(
        described, 100
    )


def test_the_rule_script_builds_from_a_matrix_and_from_a_spec(built, tmp_path):
    section = {"model_id": "tiny-7", "kind": "synthetic", "shape": "tiny", "seed": 7, "dtype": "float32"}
    (tmp_path / "matrix.json").write_text(json.dumps({"model": section}))
    for name, source in (
        ("a", ["--matrix", tmp_path / "matrix.json"]),
        ("b", ["--spec", json.dumps(section)]),
    ):
        command = [sys.executable, SCRIPTS / "model.py", *source, "--out", tmp_path / name]
        subprocess.run(command, check=True, capture_output=True)
    made = manifest.load(tmp_path / "a")
    assert made == manifest.load(tmp_path / "b")
    assert made.model_id == "tiny-7"
    assert made.sha256 == manifest.load(built).sha256
    assert made.directory(tmp_path / "a") == tmp_path / "a/weights"
