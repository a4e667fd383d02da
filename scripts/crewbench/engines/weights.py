"""Reads safetensors files onto one GPU with many threads: the loader `parallel`.

`from_pretrained` reads through one thread's page faults. Here each thread reads its chunks into pinned
memory, and while one buffer travels to the GPU it fills the other. What is read is the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

CHUNK = 16 * 2**20
THREADS = 12
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read(files: Sequence[Path], device: str) -> dict[str, torch.Tensor]:
    """All tensors of these files, on `device`. OSError or ValueError for a file that is cut short.

    Each file's tensors are views of one buffer. Format: 8 bytes little-endian header length, the header as
    JSON with byte offsets, the data (safetensors' README, "Format").
    """
    tensors: dict[str, torch.Tensor] = {}
    chunks: list[tuple[int, int, torch.Tensor]] = []
    opened: list[int] = []
    try:
        for path in files:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.append(fd)
            length = int.from_bytes(os.pread(fd, 8, 0), "little")
            header = json.loads(os.pread(fd, length, 8))
            header.pop("__metadata__", None)
            size = max((t["data_offsets"][1] for t in header.values()), default=0)
            data = torch.empty(size, dtype=torch.uint8, device=device)
            for name, tensor in header.items():
                begin, end = tensor["data_offsets"]
                tensors[name] = data[begin:end].view(DTYPES[tensor["dtype"]]).view(tensor["shape"])
            for at in range(0, size, CHUNK):
                chunks.append((fd, 8 + length + at, data[at : at + CHUNK]))
        with ThreadPoolExecutor(THREADS) as pool:
            shares = [chunks[i::THREADS] for i in range(THREADS)]
            list(pool.map(lambda share: _carry(share, torch.device(device)), shares))
    finally:
        for fd in opened:
            os.close(fd)
    return tensors


def _carry(chunks: Sequence[tuple[int, int, torch.Tensor]], device: torch.device) -> None:
    """Read these chunks one after another, two buffers in turn, and wait until the last has arrived."""
    if not chunks:
        return
    on_gpu = device.type == "cuda"
    buffers = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
    stream = torch.cuda.Stream(device) if on_gpu else None
    arrived = [torch.cuda.Event() if on_gpu else None for _ in buffers]
    for turn, (fd, offset, target) in enumerate(chunks):
        buffer = buffers[turn % 2][: target.numel()]
        event = arrived[turn % 2]
        if event is not None:
            event.synchronize()
        view, done = memoryview(buffer.numpy()), 0
        while done < len(view):
            got = os.preadv(fd, [view[done:]], offset + done)
            if got == 0:
                raise ValueError(f"a weight file ends {len(view) - done} bytes early: fetch it again")
            done += got
        if stream is None:
            target.copy_(buffer)
            continue
        with torch.cuda.stream(stream):
            target.copy_(buffer, non_blocking=True)
            event.record(stream)
    if stream is not None:
        stream.synchronize()
