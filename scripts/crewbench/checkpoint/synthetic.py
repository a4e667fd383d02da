"""Synthetic checkpoints: a real MistralForCausalLM with random weights and its own tokenizer.

They load, run and fill memory as a trained checkpoint of that shape does, and can be made anywhere. They
know no language.

The weights are the same bytes on every machine, on CPU and on any GPU, whatever the versions of torch: each
is a hash of its position, in integer arithmetic, scaled by one rounding (`_uniform`). The tokenizer's file is
the same bytes for the same version of the tokenizers library. The manifest holds no time and no host.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crewbench.checkpoint import manifest
from crewbench.checkpoint.files import INDEX, SINGLE, THREADS, CheckpointError
from crewbench.checkpoint.manifest import DTYPE_BYTES, Manifest

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights"
SHARD_BYTES = 2 * 10**9
"""Several shards, so that writing, hashing and reading them go side by side."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Mistral decoder, by the names of its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 32768
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02


SHAPES = {
    # Mistral's proportions (4 query heads to a KV head, 3.5 times as wide inside) at 4 million parameters.
    # Wider numbers make up for the narrow layers: with 0.02 the answer hardly depends on the prompt.
    "tiny": Shape(1024, 256, 896, 4, 8, 2, 32, initializer_range=0.1),
    # mistralai/Mistral-7B-v0.3, config.json.
    "mistral-7b": Shape(32768, 4096, 14336, 32, 32, 8, 128),
}

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
"""Ids 0 to 4, as in Mistral-7B-v0.3."""

CHAT_TEMPLATE = """\
{%- if messages and messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] ~ "\\n\\n" %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = "" %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message["role"] != ("user" if loop.index0 % 2 == 0 else "assistant") %}
        {{- raise_exception("After the optional system message, roles must alternate user and assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {{- "[INST] " ~ (system if loop.first else "") ~ message["content"] ~ "[/INST]" }}
    {%- else %}
        {{- " " ~ message["content"] ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""

TEXT = """\
a team of agents share the graphics cards of one machine and each of them holds a model in memory
you are an expert who explains the concept and the challenges of multi agent multi gpu execution
your role and your personal goal is to give the best answer to this task with clear words for the others
this is the expected criteria for your final answer and the context that you are working with
current task begin now do not return a summary it must be the complete content as your job depends on it
product manager system architect research data engineer backend frontend developer security specialist
load latency parallel sequential shared cooperative hierarchical plan work summarise deploy measure
"""
"""What the tokenizer's first merges come from: each word of it, with its space, becomes one token."""


def build(
    shape: str,
    seed: int,
    dtype: str,
    out_dir: Path | str,
    *,
    model_id: str | None = None,
    device: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Build the checkpoint under `out_dir`/weights and its manifest beside it, and return the manifest.

    `dtype` is float32, bfloat16 or float16; `device` is where the numbers are made (default: a GPU if there
    is one), which does not change them. Never holds more than a few tensors. The weights take their place
    whole, the manifest last: after an interruption or a full disk there is no manifest. Raises
    CheckpointError for an unknown shape or dtype, OSError for a full disk.
    """
    if shape not in SHAPES:
        raise CheckpointError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f"dtype {dtype!r} is none of float32, bfloat16, float16")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / manifest.NAME).unlink(missing_ok=True)
    for left_over in out.glob(f".{WEIGHTS}.*"):
        shutil.rmtree(left_over)
    new = Path(tempfile.mkdtemp(prefix=f".{WEIGHTS}.", dir=out))
    new.chmod(0o755)
    try:
        sizes = SHAPES[shape]
        tokenizer = _write_tokenizer(sizes, new)
        _write_json(new / "config.json", _config(sizes, dtype))
        _write_json(new / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
        hashes = _write_weights(sizes, seed, dtype, new, device, shard_bytes, _unseen(tokenizer))
        described = manifest.describe(
            new,
            model_id=model_id or f"synthetic-{shape}",
            kind="synthetic",
            path=WEIGHTS,
            random_weights=True,
            source={"shape": shape, "seed": seed},
            known_sha256=hashes,
        )
        if (out / WEIGHTS).exists():
            shutil.rmtree(out / WEIGHTS)
        os.rename(new, out / WEIGHTS)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    described.write(out)
    return described


def _config(sizes: Shape, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": dtype,
        "eos_token_id": 2,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden_size,
        "initializer_range": sizes.initializer_range,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": sizes.max_position_embeddings,
        "model_type": "mistral",
        "num_attention_heads": sizes.num_attention_heads,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_key_value_heads": sizes.num_key_value_heads,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        # Without it Transformers takes the file for one of an older release and warns of its tokenizer.
        "transformers_version": "5.0.0",
        "use_cache": True,
        "vocab_size": sizes.vocab_size,
    }


# ---- weights


def tensors(sizes: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all weights, in the order of the layers."""
    hidden, inside = sizes.hidden_size, sizes.intermediate_size
    queries = sizes.num_attention_heads * sizes.head_dim
    keys = sizes.num_key_value_heads * sizes.head_dim
    yield "model.embed_tokens.weight", (sizes.vocab_size, hidden)
    for i in range(sizes.num_hidden_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (inside, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inside, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inside)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (sizes.vocab_size, hidden)


def _write_weights(
    sizes: Shape, seed: int, dtype: str, place: Path, device: str | None, shard_bytes: int, unseen: list[int]
) -> dict[str, str]:
    """Write the shards side by side, and the index if there are several. Returns each file's SHA-256."""
    import torch

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = total = 0
    for name, shape in tensors(sizes):
        length = math.prod(shape) * DTYPE_BYTES[dtype]
        if shards[-1] and filled + length > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += length
        total += length
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)] if count > 1 else [SINGLE]

    def write(job: tuple[str, list[tuple[str, tuple[int, ...]]]]) -> str:
        return _write_shard(place / job[0], job[1], sizes, seed, dtype, where, unseen)

    with ThreadPoolExecutor(min(4, THREADS)) as pool:
        hashes = dict(zip(names, pool.map(write, zip(names, shards, strict=True)), strict=True))
    if count > 1:
        weight_map = {t: name for name, shard in zip(names, shards, strict=True) for t, _ in shard}
        _write_json(place / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return hashes


def _write_shard(
    path: Path,
    shard: list[tuple[str, tuple[int, ...]]],
    sizes: Shape,
    seed: int,
    dtype: str,
    device: torch.device,
    unseen: list[int],
) -> str:
    """One safetensors file, tensor by tensor, hashed on the way (its format: see manifest._header)."""
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shard:
        length = math.prod(shape) * DTYPE_BYTES[dtype]
        short = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
        header[name] = {"dtype": short, "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file, torch.inference_mode():
        for block in (
            struct.pack("<Q", len(head)) + head,
            *_blocks(shard, sizes, seed, dtype, device, unseen),
        ):
            view = memoryview(block).cast("B")
            digest.update(view)
            while view:
                view = view[file.write(view) :]
    return digest.hexdigest()


def _blocks(
    shard: list[tuple[str, tuple[int, ...]]],
    sizes: Shape,
    seed: int,
    dtype: str,
    device: torch.device,
    unseen: list[int],
) -> Iterator[memoryview]:
    import torch

    for name, shape in shard:
        if name.endswith("norm.weight"):
            tensor = torch.ones(shape, dtype=getattr(torch, dtype))
        else:
            tensor = _uniform(name, shape, seed, sizes.initializer_range, getattr(torch, dtype), device)
        if name == "lm_head.weight":
            tensor[unseen] = 0
        yield memoryview(tensor.cpu().view(torch.uint8).numpy())


def _uniform(
    name: str, shape: tuple[int, ...], seed: int, std: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Uniform numbers with mean 0 and deviation `std`: a function of seed, name and position alone.

    Each is the top 24 bits of a 64-bit hash of its position (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014: SplitMix64's mixing), times one float32 constant, rounded
    once to `dtype`. Integer arithmetic wraps alike on CPUs and GPUs, so the bytes are the same on each.
    """
    import torch

    count = math.prod(shape)
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little", signed=True)
    scale = torch.tensor(std * math.sqrt(3) / 2**23, dtype=torch.float32, device=device)
    out = torch.empty(count, dtype=dtype, device=device)
    # Small enough for a CPU's cache, large enough to fill a GPU.
    step = 2**18 if device.type == "cpu" else 2**24
    for start in range(0, count, step):
        x = torch.arange(start, min(start + step, count), dtype=torch.int64, device=device)
        x.mul_(_signed(0x9E3779B97F4A7C15)).add_(key)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(_signed(factor))
        x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))
        out[start : start + x.numel()] = (x >> 40).to(torch.float32).mul_(scale).to(dtype)
    return out.view(shape)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


# ---- tokenizer


def _write_tokenizer(sizes: Shape, place: Path) -> Any:
    """A byte-level BPE tokenizer that knows every id of the model, adds BOS as Mistral's does, and chats."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary, merges = _vocabulary(sizes.vocab_size)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.save(str(place / "tokenizer.json"))
    _write_json(
        place / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": sizes.max_position_embeddings,
            "pad_token": "</s>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        },
    )
    (place / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return tokenizer


def _vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """`size` tokens: the special ones, the 256 bytes, the words of TEXT, then pairs and triples of letters.

    Every id must be a token: random weights choose any of them, and text must come of it.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    space = "\u0120"  # byte-level BPE's letter for the byte 32
    tokens = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    letters = "etaoinshrdlucmfwygpbvkjxqz"
    words = (space + word for word in TEXT.split())
    fillers = (
        "".join(p) for start in (("",), (space,)) for n in (2, 3) for p in product(start, *[letters] * n)
    )
    for word in (*words, *fillers):
        for end in range(2, len(word) + 1):
            if len(vocabulary) == size:
                return vocabulary, merges
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    raise CheckpointError(f"a vocabulary of {size} tokens is more than this tokenizer can fill")


def _unseen(tokenizer: Any) -> list[int]:
    """The ids that show nothing: special tokens, white space and control characters.

    Their output rows are zero, so that greedy output is never empty (CrewAI takes an empty answer for a
    failed call) and never ends by itself.
    """
    return [
        i
        for i in range(tokenizer.get_vocab_size())
        if not any(c.isprintable() and not c.isspace() for c in tokenizer.decode([i]))
    ]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
