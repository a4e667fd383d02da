"""The parallel loader reads what safetensors' own reader reads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from crewbench.engines import weights


@pytest.fixture
def shards(tmp_path):
    """Two files with several dtypes, one of them larger than a few chunks."""
    generator = torch.Generator().manual_seed(3)
    first = {
        "a.weight": torch.randn(300, 700, generator=generator).to(torch.bfloat16),
        "a.bias": torch.randn(700, generator=generator),
    }
    second = {"b.weight": torch.randn(50, 2, 3, generator=generator), "b.steps": torch.arange(5)}
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, tensors in zip(paths, (first, second), strict=True):
        save_file(tensors, path, metadata={"format": "pt"})
    return paths


def test_every_tensor_has_the_values_type_and_shape_of_safetensors_own_reader(shards, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 4096)  # many chunks for every thread, the last ones short
    read = weights.read(shards, "cpu")
    expected = load_file(shards[0]) | load_file(shards[1])
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_file_that_was_cut_short_is_an_error_and_not_zeros(shards):
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:-8])
    with pytest.raises(ValueError, match="ends 8 bytes early"):
        weights.read(shards, "cpu")
