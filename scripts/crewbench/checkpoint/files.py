"""The files of a checkpoint: their size, their hash, and how much of them is in the page cache.

Start states rest on this: `disk` needs the weights out of the page cache and `process` needs them in it,
and neither is believed unless mincore says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CHUNK = 4 * 2**20
THREADS = min(8, os.cpu_count() or 1)
WARM_SHARE = 0.999
EVICTED_SHARE = 0.001
"""What counts as in and out of the page cache: the kernel may hold back a page or two of a file."""
READS = 3
"""Pages that were read once are the first that a kernel short of memory drops, those read again the last."""


class CheckpointError(RuntimeError):
    """A checkpoint is not what it should be. The text names the file and the remedy."""


class PageCacheError(CheckpointError):
    """The page cache could not be brought to the state asked for, or its state cannot be known."""


Where = str | Path | Iterable[str | Path]
"""A checkpoint's directory, or the weight files themselves."""


def weight_files(where: Where) -> list[Path]:
    """The files that loading a directory reads weights from, by name; a list of files as it is.

    Those are the shards that the index names, or model.safetensors: some repositories hold the same weights
    once more in other files.
    """
    if not isinstance(where, str | Path):
        return [Path(path) for path in where]
    directory = Path(where)
    index = directory / INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index} is no index of shards: fetch it again") from None
        return [directory / name for name in sorted(names)]
    if not (directory / SINGLE).is_file():
        raise CheckpointError(
            f"{directory} has neither {SINGLE} nor {INDEX}: weights are read as safetensors only"
        )
    return [directory / SINGLE]


def size(where: Where) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in weight_files(where))


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hex."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_share(where: Where, every: int = 1) -> float | None:
    """The share of the weights' pages that is in the page cache, 0 to 1, by mincore(2).

    With `every` n it looks at one MiB in n: asking for all pages of a 7B model takes 0.1 s. None where the
    kernel would not tell: since Linux 5.2 it answers "all" for files that the caller neither owns nor may
    write. Touches no page itself.
    """
    resident = pages = 0
    for path in weight_files(where):
        if not _tells(path):
            return None
        in_cache, of = _resident_pages(path, every)
        resident += in_cache
        pages += of
    return resident / pages if pages else 1.0


def warm(where: Where) -> float | None:
    """Read the weights into the page cache, several reads at a time, and return `cached_share`.

    PageCacheError if they do not all stay there in READS readings: too little memory for them.
    """
    paths = weight_files(where)
    jobs = [(path, start) for path in paths for start in range(0, path.stat().st_size, 16 * CHUNK)]
    for _ in range(READS):
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(_read_through, jobs))
        share = cached_share(paths)
        if share is None or share >= WARM_SHARE:
            return share
    raise PageCacheError(
        f"only {share:.1%} of {size(paths) / 2**30:.2f} GiB of weights stayed in the page cache: "
        "free some memory, or use the start state 'disk'"
    )


def evict(where: Where) -> float:
    """Drop the weights from the page cache and return the share that is left, at most EVICTED_SHARE.

    Dirty pages cannot be dropped, so each file is written out first. PageCacheError if pages stay (another
    process has them mapped, or the file system lives in memory) or if nobody can tell.
    """
    paths = weight_files(where)
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    share = cached_share(paths)
    if share is None:
        raise PageCacheError(
            f"whether {paths[0].parent} is out of the page cache cannot be known: its files belong to "
            "another user; copy the checkpoint, or leave the start state 'disk' out"
        )
    if share > EVICTED_SHARE:
        raise PageCacheError(
            f"{share:.1%} of the weights in {paths[0].parent} stay in the page cache: a process has them "
            "mapped, or the directory is held in memory; end it or move the checkpoint to a disk"
        )
    return share


def _read_through(job: tuple[Path, int]) -> None:
    path, start = job
    buffer = bytearray(CHUNK)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset in range(start, start + 16 * CHUNK, CHUNK):
            if os.preadv(fd, [buffer], offset) == 0:
                return
    finally:
        os.close(fd)


def _tells(path: Path) -> bool:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise CheckpointError(f"{path} is not a regular file")
    return os.geteuid() in (0, info.st_uid) or os.access(path, os.W_OK)


def _resident_pages(path: Path, every: int) -> tuple[int, int]:
    """Pages in the cache, and pages looked at: one MiB in `every`. The mapping is made and never read."""
    length = path.stat().st_size
    if length == 0:
        return 0, 0
    libc = _libc()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == ctypes.c_void_p(-1).value:
        raise PageCacheError(f"{path} cannot be mapped: {os.strerror(ctypes.get_errno())}")
    stretch = length if every == 1 else _MIB
    resident = pages = 0
    try:
        for offset in range(0, length, stretch * every):
            part = min(stretch, length - offset)
            states = (ctypes.c_ubyte * -(-part // mmap.PAGESIZE))()
            if libc.mincore(address + offset, part, states) != 0:
                raise PageCacheError(f"mincore on {path}: {os.strerror(ctypes.get_errno())}")
            # Only the lowest bit is defined. A Python loop would take 0.2 s over a 7B model's pages.
            resident += bytes(states).translate(_LOWEST_BIT).count(1)
            pages += len(states)
    finally:
        libc.munmap(address, length)
    return resident, pages


_MIB = 2**20
_LOWEST_BIT = bytes(state & 1 for state in range(256))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_size_t
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, word]
    libc.mincore.argtypes = [ctypes.c_void_p, word, ctypes.POINTER(ctypes.c_ubyte)]
    return libc
