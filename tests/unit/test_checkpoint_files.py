"""The page cache: what is in it is measured, never assumed."""

import mmap
import os
import subprocess
import sys

import pytest

from crewbench.checkpoint import files
from crewbench.checkpoint.files import CheckpointError, PageCacheError


@pytest.fixture
def checkpoint(tmp_path):
    """Weights of 24 MiB and a bit, on the file system of the tests."""
    (tmp_path / "model.safetensors").write_bytes(os.urandom(24 * 2**20 + 5))
    return tmp_path


def test_weights_are_evicted_and_warmed_and_both_are_seen(checkpoint):
    assert files.evict(checkpoint) <= files.EVICTED_SHARE
    assert files.cached_share(checkpoint) <= files.EVICTED_SHARE
    assert files.warm(checkpoint) == 1.0
    assert files.cached_share(checkpoint) == 1.0


@pytest.fixture
def losing(checkpoint, monkeypatch):
    """Makes the pages leave the cache after each of the next `times` readings, before they are counted."""

    def lose(times):
        left = [*range(times)]
        look = files.cached_share

        def look_late(where):
            if left:
                left.pop()
                fd = os.open(checkpoint / "model.safetensors", os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            return look(where)

        monkeypatch.setattr(files, "cached_share", look_late)

    return lose


def test_weights_that_leave_the_cache_are_read_again(checkpoint, losing):
    losing(files.READS - 1)
    assert files.warm(checkpoint) >= files.WARM_SHARE


def test_weights_that_leave_the_cache_each_time_are_not_called_warm(checkpoint, losing):
    losing(files.READS)
    with pytest.raises(PageCacheError, match=r"only 0\.0% of 0\.02 GiB of weights stayed .* 'disk'"):
        files.warm(checkpoint)


def test_the_share_is_of_the_bytes_that_are_there(checkpoint):
    files.evict(checkpoint)
    with open(checkpoint / "model.safetensors", "rb", buffering=0) as weights:
        os.posix_fadvise(weights.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        for offset in range(0, 6 * 2**20, mmap.PAGESIZE):
            os.pread(weights.fileno(), 1, offset)
    assert files.cached_share(checkpoint) == pytest.approx(0.25, abs=0.01)
    assert files.cached_share(checkpoint, every=2) == pytest.approx(0.25, abs=0.01)
    assert files.cached_share(checkpoint, every=24) == pytest.approx(1, abs=0.01)  # the first MiB


def test_looking_at_the_cache_changes_nothing(checkpoint):
    files.evict(checkpoint)
    for _ in range(3):
        assert files.cached_share(checkpoint) <= files.EVICTED_SHARE


def test_weights_that_a_process_has_mapped_cannot_be_called_cold(checkpoint):
    with open(checkpoint / "model.safetensors", "rb") as weights:
        mapped = mmap.mmap(weights.fileno(), 0, prot=mmap.PROT_READ)
        for offset in range(0, len(mapped), mmap.PAGESIZE):
            mapped[offset]
        with pytest.raises(PageCacheError, match="stay in the page cache"):
            files.evict(checkpoint)
        mapped.close()
    files.evict(checkpoint)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a file system in memory")
def test_weights_on_a_file_system_in_memory_cannot_be_called_cold(checkpoint):
    inside = f"/dev/shm/crewbench-{os.getpid()}.safetensors"
    try:
        with open(inside, "wb") as copy:
            copy.write(b"x" * 2**20)
        with pytest.raises(PageCacheError, match="held in memory"):
            files.evict([inside])
    finally:
        os.unlink(inside)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_of_another_users_weights_nobody_can_tell(checkpoint):
    checkpoint.chmod(0o755)
    weights = checkpoint / "model.safetensors"
    weights.chmod(0o644)
    code = (
        "import os, sys\nfrom crewbench.checkpoint import files\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\nos.setuid(65534)\n"
        "path = f'/proc/self/fd/{fd}'\n"
        "assert files.cached_share([path]) is None\n"
        "try:\n    files.evict([path])\nexcept files.PageCacheError as error:\n    print(error)"
    )
    scripts = os.path.dirname(os.path.dirname(os.path.dirname(files.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code, weights],
        env={**os.environ, "PYTHONPATH": scripts},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "belong to another user" in done.stdout


def test_sizes_and_hashes_are_those_of_the_bytes(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert files.size(tmp_path) == 3
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "model.safetensors") == expected


def test_a_directory_without_weights_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        files.cached_share(tmp_path)
