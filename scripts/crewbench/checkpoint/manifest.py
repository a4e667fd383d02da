"""A checkpoint's manifest: what it is, where it lies, and the hash of every file.

The manifest is written last and whole, so a checkpoint without one is not done. This file also checks and
describes checkpoints that come from elsewhere: a local directory, or one that the hub's cache holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crewbench.checkpoint.files import INDEX, THREADS, CheckpointError, sha256, weight_files

NAME = "manifest.json"
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Copies of the weights that repositories hold beside the shards; loading reads none of them.
_WEIGHTS_IN_OTHER_FORMS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint. `path` is its directory, relative to the manifest's own or absolute; `sha256` is over
    the sorted lines "<sha256>  <name>" of `files`, so it stands for every byte. `dtype` is that of the
    weights, `architecture` what config.json says of the sizes that memory depends on, and whether the output
    projection is the input embedding (`tied_embeddings`).
    """

    model_id: str
    kind: str  # "synthetic" | "local" | "hub"
    path: str
    sha256: str
    files: tuple[Mapping[str, Any], ...]  # name, bytes, sha256
    parameters: int
    weights_bytes: int
    dtype: str
    architecture: Mapping[str, Any]
    random_weights: bool
    source: Mapping[str, Any] = field(default_factory=dict)  # shape and seed, or repo and revision

    def write(self, directory: Path) -> Path:
        """Leave it in `directory`, whole or not at all."""
        target = directory / NAME
        new = directory / f".{NAME}.{os.getpid()}"
        with open(new, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
        return target

    def directory(self, model_dir: Path | str) -> Path:
        """Where the checkpoint lies, for a manifest that was read from `model_dir`."""
        return (Path(model_dir) / self.path).resolve()

    def weight_files(self, model_dir: Path | str) -> list[Path]:
        place = self.directory(model_dir)
        return [place / f["name"] for f in self.files if f["name"].endswith(".safetensors")]


REMEDY = "`.venv/bin/python scripts/model.py` puts the last study's model back, and no finished trial reruns"
"""The same bytes give the same manifest, so that nothing which depends on it is out of date."""


def load(model_dir: Path | str) -> Manifest:
    """Read the manifest in `model_dir` and see that its files are there in their full length.

    CheckpointError with the remedy otherwise. Does not hash again: that reads every byte.
    """
    path = Path(model_dir) / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**{**data, "files": tuple(data["files"])})
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: run scripts/model.py first") from None
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no manifest ({error}): delete it and run scripts/model.py"
        ) from None
    for entry in manifest.files:
        file = manifest.directory(model_dir) / entry["name"]
        found = file.stat().st_size if file.is_file() else None
        if found != entry["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes instead of {entry['bytes']}"
            raise CheckpointError(f"{file} {state}: {REMEDY}")
    return manifest


def describe(
    directory: Path,
    *,
    model_id: str,
    kind: str,
    path: str,
    random_weights: bool,
    source: Mapping[str, Any],
    known_sha256: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of a checked directory. `known_sha256` by file name spares hashing a file again."""
    check(directory)
    shards = weight_files(directory)
    others = [
        p
        for p in directory.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.suffix not in _WEIGHTS_IN_OTHER_FORMS
    ]
    names = sorted({p.name for p in [*others, *shards]})
    known = dict(known_sha256 or {})
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda n: known.get(n) or sha256(directory / n), names))
    files = tuple(
        {"name": name, "bytes": (directory / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, hashes, strict=True)
    )
    config = _json(directory / "config.json")
    tensors = {name: t for path in shards for name, t in _tensors(path).items()}
    dtypes = sorted({dtype for dtype, _ in tensors.values()})
    return Manifest(
        model_id=model_id,
        kind=kind,
        path=path,
        sha256=hashlib.sha256("".join(f"{f['sha256']}  {f['name']}\n" for f in files).encode()).hexdigest(),
        files=files,
        parameters=sum(math.prod(shape) for _, shape in tensors.values()),
        weights_bytes=sum(math.prod(shape) * _bytes_of(dtype) for dtype, shape in tensors.values()),
        dtype=_SAFETENSORS_DTYPES.get(dtypes[0], dtypes[0]) if len(dtypes) == 1 else "mixed",
        # By what is stored: a config.json may leave the key out, and defaults differ between versions.
        architecture={
            **_architecture(config),
            "tied_embeddings": not any(name.endswith("lm_head.weight") for name in tensors),
        },
        random_weights=random_weights,
        source=dict(source),
    )


def local(model_id: str, path: str | Path) -> Manifest:
    """Check and describe a directory of the user's own. CheckpointError names what is missing."""
    directory = Path(path).expanduser().resolve()
    if not directory.is_dir():
        raise CheckpointError(f"model.path {path} is no directory: correct it, or use a synthetic model")
    return describe(
        directory, model_id=model_id, kind="local", path=str(directory), random_weights=False, source={}
    )


def hub(model_id: str, repo: str, revision: str | None) -> Manifest:
    """Check and describe what the hub's cache on this machine holds; never uses the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        at = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"{repo} is not in the hub's cache of this machine. Fetch it once with:\n  hf download {repo}{at}"
        ) from None
    return describe(
        directory,
        model_id=model_id,
        kind="hub",
        path=str(directory.resolve()),
        random_weights=False,
        source={"repo": repo, "revision": directory.name},
    )


def check(directory: Path) -> None:
    """Whether everything that loading needs is there: CheckpointError names the first thing that is not."""
    config = _json(directory / "config.json")
    if "architectures" not in config:
        raise CheckpointError(f"{directory / 'config.json'} names no architectures: not a model's config")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tekken.json")):
        raise CheckpointError(
            f"{directory} has no tokenizer (tokenizer.json): add it from the model's source"
        )
    if not _has_chat_template(directory):
        raise CheckpointError(
            f"{directory} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): agents talk in chats, so use an instruct model or add its template"
        )
    for path in weight_files(directory):
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing, although {INDEX} names it: fetch that file again "
                "(hf download REPO FILE), or copy it from where the checkpoint came from"
            )
        end = _header(path)[1]
        if path.stat().st_size != end:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes instead of {end}: it was not copied whole, "
                "fetch it again"
            )


def _has_chat_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file() or (directory / "chat_template.json").is_file():
        return True
    config = directory / "tokenizer_config.json"
    return config.is_file() and bool(_json(config).get("chat_template"))


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that memory depends on, with the defaults that Transformers gives absent ones."""
    found = {name: config.get(name) for name in _ARCHITECTURE}
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found["num_attention_heads"]
    if found["head_dim"] is None and found["hidden_size"] and found["num_attention_heads"]:
        found["head_dim"] = found["hidden_size"] // found["num_attention_heads"]
    return found


def _tensors(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in a safetensors file, by its name."""
    header, _ = _header(path)
    return {name: (t["dtype"], t["shape"]) for name, t in header.items() if name != "__metadata__"}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and how long the whole file must be.

    Format: 8 bytes little-endian header length, the header as JSON, then the data.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (struct.error, ValueError, MemoryError, OverflowError):
        raise CheckpointError(f"{path} is no safetensors file: fetch it again") from None
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    return header, 8 + length + max(ends, default=0)


def _bytes_of(dtype: str) -> int:
    """Bytes of one element of a safetensors dtype such as BF16 or F8_E4M3."""
    if dtype == "BOOL":
        return 1
    bits = "".join(c for c in dtype.split("_")[0] if c.isdigit())
    return int(bits) // 8


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: is {path.parent} a checkpoint's directory?") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch it again") from None
