"""Staging: a checkpoint's copy on a disk of the node's own, made once and used by the trials that come later.

The copy is a directory whose name carries the checkpoint's hash. It gets that name when it is whole and every
byte that went into it was seen to be the manifest's, so one that has the name is done.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from crewbench.checkpoint import manifest
from crewbench.checkpoint.files import CHUNK, THREADS, CheckpointError
from crewbench.checkpoint.manifest import Manifest

MIB = 2**20


class StageError(CheckpointError):
    """A checkpoint could not be staged. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A checkpoint's copy in `directory`, which holds its manifest. `copied` is False where it was there;
    `seconds` is what copying, or waiting and looking, took. `file_system` is the type of what it lies on."""

    directory: Path
    bytes: int
    seconds: float
    copied: bool
    file_system: str

    def __str__(self) -> str:
        did = "copied" if self.copied else "found"
        return f"staged: {did} {self.bytes / MIB:.0f} MiB at {self.directory} in {self.seconds:.1f} s"

    def record(self) -> dict[str, Any]:
        """What trial.json says of it."""
        return {
            "path": str(self.directory),
            "bytes": self.bytes,
            "seconds": self.seconds,
            "copied": self.copied,
            "file_system": self.file_system,
        }


def place(said: str, environment: Mapping[str, str]) -> Path:
    """The directory that `model.stage` names on this node: variables and ~ are this node's.

    StageError where one is not set here or the directory is not there: a directory that is made under a
    mistaken name would be on the disk that staging is to spare.
    """
    try:
        directory = Path(Template(said).substitute(environment)).expanduser()
    except KeyError as error:
        raise StageError(
            f"model.stage is {said}, and {error.args[0]} is not set on this node: name another variable or "
            "directory, or leave model.stage out"
        ) from None
    except ValueError as error:
        raise StageError(f"model.stage is {said}: {error}; write $NAME, ${{NAME}}, or $$ for a $") from None
    shown = said if str(directory) == said else f"{said}, here {directory}"
    if not directory.is_absolute():
        raise StageError(f"model.stage is {shown}: it must be an absolute path")
    if not directory.is_dir():
        raise StageError(
            f"model.stage is {shown}, which is no directory on this node: make it, or name another"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StageError(f"model.stage is {shown}, where this user may not write: name another directory")
    return directory


def stage(found: Manifest, model_dir: Path | str, directory: Path) -> Staged:
    """Copy the checkpoint, whose manifest was read from `model_dir`, into `directory`, unless it is there.

    One process of a node copies and the others wait for it. A copy that is there is taken when its files have
    their sizes, and made anew otherwise. StageError where there is no room, or where what was read is not
    what the manifest says; nothing half-made stays.
    """
    began = time.monotonic()
    size = sum(entry["bytes"] for entry in found.files)
    home = _own(directory / f"crewbench-{os.getuid()}")
    target = home / found.sha256
    with _alone(home / f"{found.sha256}.lock"):
        copied = not _is_whole(target, found)
        if copied:
            part = home / f"{found.sha256}.part"
            for old in (part, target):  # `part` is there when who made it was killed
                shutil.rmtree(old, ignore_errors=True)
            try:
                _copy(found, model_dir, part, size)
                os.rename(part, target)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    seconds = time.monotonic() - began
    return Staged(target, size, seconds, copied, _file_system(target))


def _own(home: Path) -> Path:
    """The user's directory in a place that others may write to as well."""
    home.mkdir(mode=0o700, exist_ok=True)
    info = home.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise StageError(f"{home} is not this user's directory: remove it, or change model.stage")
    return home


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While another process of this node is in here, wait. The kernel lets go for one that dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_whole(target: Path, wanted: Manifest) -> bool:
    try:
        return manifest.load(target).sha256 == wanted.sha256
    except CheckpointError:
        return False


def _copy(found: Manifest, model_dir: Path | str, part: Path, size: int) -> None:
    source = found.directory(model_dir)
    free = shutil.disk_usage(part.parent).free
    if free < size:
        raise StageError(_no_room(part.parent, size, free))
    part.mkdir(mode=0o700)

    def one(entry: Mapping[str, Any]) -> None:
        name = entry["name"]
        if _copy_file(source / name, part / name) != entry["sha256"]:
            raise StageError(
                f"{source / name} is not what its manifest says: it changed since scripts/model.py ran, or "
                f"its disk fails. Delete {Path(model_dir) / manifest.NAME} and run again"
            )

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, found.files))
        replace(found, path=".").write(part)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Others fill the disk too, and a quota does not show in what is free.
        raise StageError(_no_room(part.parent, size, shutil.disk_usage(part.parent).free)) from None


def _copy_file(source: Path, target: Path) -> str:
    """Copies a file onto the disk itself (`disk` starts evict it). Returns the SHA-256 of what was read."""
    digest = hashlib.sha256()
    target.parent.mkdir(exist_ok=True)
    with open(source, "rb", buffering=0) as read, open(target, "xb", buffering=0) as write:
        while chunk := read.read(CHUNK):
            digest.update(chunk)
            left = memoryview(chunk)
            while left:
                left = left[write.write(left) :]
        os.fsync(write.fileno())
    return digest.hexdigest()


def _no_room(directory: Path, size: int, free: int) -> str:
    return (
        f"{directory} has no room for the checkpoint: it takes {size / MIB:.0f} MiB and {free / MIB:.0f} are "
        "free (a quota may allow less). Free some, name another directory in model.stage, or leave it out"
    )


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on, as /proc/self/mountinfo has it (proc(5)); "" if none
    there has its device number."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return ""
