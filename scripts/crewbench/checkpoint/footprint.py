"""What a checkpoint will take of a device's memory, from its own config: predicted before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crewbench.checkpoint.manifest import DTYPE_BYTES, Manifest

MIB = 2**20
CUDA_CONTEXT_MIB = 500.0
"""What a process takes of a GPU before its first tensor: measured on an H200 with torch 2.11."""


def weights_bytes(manifest: Manifest, dtype: str | None = None) -> int:
    """Bytes of the weights once loaded as `dtype` (default: as they are stored)."""
    if dtype is None or dtype == manifest.dtype:
        return manifest.weights_bytes
    return manifest.parameters * DTYPE_BYTES[dtype]


def decode_bytes(manifest: Manifest, dtype: str | None = None) -> int:
    """Bytes of weights that a dense model reads to decode one token of one sequence: all of them, but of an
    input embedding that is not the output projection too only one row, which is left out."""
    whole, a = weights_bytes(manifest, dtype), manifest.architecture
    if a.get("tied_embeddings", True):
        return whole
    return whole - a["vocab_size"] * a["hidden_size"] * DTYPE_BYTES[dtype or manifest.dtype]


def kv_bytes_per_token(architecture: Mapping[str, Any], dtype: str) -> int:
    """Bytes of KV cache for one token of one sequence.

    2 (key and value) · layers · KV heads · head size · bytes of a number: Kwon et al., "Efficient Memory
    Management for Large Language Model Serving with PagedAttention", SOSP 2023, section 3, with KV heads in
    place of the hidden size as grouped-query attention has it (Ainslie et al., EMNLP 2023).
    """
    a = architecture
    return 2 * a["num_hidden_layers"] * a["num_key_value_heads"] * a["head_dim"] * DTYPE_BYTES[dtype]


def kv_mib(manifest: Manifest, tokens: int, sequences: int = 1, dtype: str | None = None) -> float:
    """MiB of KV cache for `sequences` of `tokens` each; a sliding window caps the tokens that are kept."""
    window = manifest.architecture.get("sliding_window")
    kept = min(tokens, window) if window else tokens
    return kept * sequences * kv_bytes_per_token(manifest.architecture, dtype or manifest.dtype) / MIB


def predicted_mib(
    manifest: Manifest,
    tokens: int,
    sequences: int = 1,
    context_mib: float = 0.0,
    dtype: str | None = None,
) -> float:
    """MiB that one copy takes: weights + KV cache + `context_mib` (a GPU's; a slot has none).

    Activations are left out: in eager generation they are a few MiB for each hundred prompt tokens.
    """
    weights = weights_bytes(manifest, dtype) / MIB
    return weights + kv_mib(manifest, tokens, sequences, dtype) + context_mib
