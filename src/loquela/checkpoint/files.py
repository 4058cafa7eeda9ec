"""Directories that are complete or not there, whatever happens while they are written.

A directory that we save carries a `manifest.json` with the size and SHA-256 of each of its files. It is written beside
its place and renamed into it. Where the place exists already (a model saved over another), the complete new files first
become `DIR/.incoming` by one rename, and are then moved over the old ones; whoever finds a `.incoming` later finishes
the move. So a reader gets the old files or the new ones, never some of each. The first step of all this that matters is
that one rename; what fails before it leaves the old files untouched.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any

from loquela.errors import CheckpointError, StorageError

__all__ = [
    "MANIFEST",
    "atomic_directory",
    "finish_install",
    "inside",
    "install_files",
    "read_json",
    "reading_errors",
    "shown",
    "verify",
    "verify_ahead",
    "verifying",
    "write_bytes",
]

MANIFEST = "manifest.json"
INCOMING = ".incoming"
MAX_JSON = 100_000_000
_ahead: dict[Path, Future[None]] = {}
_SUPERSEDED = ("model-*-of-*.safetensors", "model.safetensors.index.json", "chat_template.jinja")
"""Files of an earlier model that would be read beside a new one; what its manifest names goes too."""


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `target`, complete and on the disk, when the block ends well.

    `target` must not exist; its parent is made. When the block or a write fails, the temporary directory is removed
    and `target` is as it was; an `OSError` becomes a `StorageError` that says the reason.
    """
    target = Path(target)
    with _storage_errors(target):
        if target.exists():
            raise FileExistsError(errno.EEXIST, "it exists already")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
        temporary.mkdir()
        with _locked(temporary):
            try:
                yield temporary
                _seal(temporary)
                temporary.rename(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        _sync(target.parent)


def install_files(source: str | Path, target: str | Path) -> None:
    """Move the files of `source`, a directory that `atomic_directory` made, over those of the directory `target`.

    Both must be on one file system. What an earlier manifest in `target` names and the new one does not is removed;
    other files stay. Raises `StorageError`; whatever fails, `target` loads as it was or as it is meant to be.
    """
    source, target = Path(source), Path(target)
    finish_install(target)
    with _storage_errors(target):
        source.rename(target / INCOMING)
        _sync(target)
    finish_install(target)


def finish_install(target: str | Path) -> None:
    """Finish what `install_files` began and an interruption cut off, if anything; raises `StorageError`."""
    target = Path(target)
    incoming = target / INCOMING
    if incoming.is_symlink() or not incoming.is_dir():
        return
    if not (incoming / MANIFEST).is_file():  # it moves last, so nothing else is left to move
        with suppress(OSError):
            incoming.rmdir()
        return
    new, old = _manifest(incoming), _manifest(target) if (target / MANIFEST).is_file() else {}
    with _storage_errors(target, f"the new files are whole in {INCOMING}, and the next load puts them in place"):
        superseded = [*old, *(entry.name for p in _SUPERSEDED for entry in target.glob(p))]
        for name in set(superseded) - set(new):
            inside(target, name).unlink(missing_ok=True)
        for name in (*new, MANIFEST):
            inside(target, PurePosixPath(name).parent.as_posix()).mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another process that opens this directory has moved it: as good
                inside(incoming, name).replace(target / name)
        _sync(target)
        shutil.rmtree(incoming, ignore_errors=True)


def verify(directory: str | Path) -> None:
    """Raise `CheckpointError` unless every file that `manifest.json` names is there, unchanged to the last bit.

    A directory without a manifest, such as other libraries write, has nothing to hold it to.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        return
    wrong = []
    with reading_errors(directory):
        for name, entry in _manifest(directory).items():
            file = inside(directory, name)
            if not file.is_file():
                wrong.append(f"{shown(name)} is missing")
            elif (size := file.stat().st_size) != entry.get("size"):
                wrong.append(f"{shown(name)} must have {entry.get('size')} bytes, but has {size}")
            elif _sha256(file) != entry.get("sha256"):
                wrong.append(f"{shown(name)} has changed")
    if wrong:
        raise CheckpointError(
            f"{directory} is not what was saved: {'; '.join(wrong)}. Take another copy, or delete {MANIFEST} if the "
            "change was meant"
        )


def verify_ahead(directory: Path) -> None:
    """Begin to verify a directory in a thread, for the next `verifying` of it: a program that loads torch has time."""
    if not (directory / INCOMING).exists():
        _ahead[directory.resolve()] = _verified(directory)


def _verified(directory: Path) -> Future[None]:
    future = Future[None]()

    def run() -> None:
        try:
            verify(directory)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    Thread(target=run, name="loquela-verify", daemon=True).start()
    return future


@contextmanager
def verifying(directory: Path) -> Iterator[None]:
    """Verify a directory while the block reads it: hashing leaves the interpreter to others.

    What `verify` has to say comes before what the block raises.
    """
    verified = _ahead.pop(directory.resolve(), None) or _verified(directory)
    try:
        yield
    except Exception:
        verified.result()
        raise
    verified.result()


def inside(directory: Path, name: str) -> Path:
    """Return the path of `name` in `directory`; raises `CheckpointError` when it would lead out of it.

    A directory of Hugging Face's cache holds links to the `blobs` beside it; those may be followed.
    """
    parts = PurePosixPath(name).parts
    if "\\" in name or "\0" in name or name.startswith("/") or ".." in parts or (parts and ":" in parts[0]):
        raise CheckpointError(f"a file of a model must lie inside its directory {directory}, but is {shown(name)}")
    path = directory.joinpath(*parts)
    root = directory.resolve()
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise CheckpointError(f"{path} cannot be followed") from error
    if not any(resolved.is_relative_to(place) for place in allowed):
        raise CheckpointError(f"{path} is a link that leads out of its directory: put the file itself there")
    return path


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a file of a model directory; raises `CheckpointError`."""
    file = inside(directory, name)
    try:
        if (size := file.stat().st_size) > MAX_JSON:
            raise CheckpointError(f"{file} must be at most {MAX_JSON:,} bytes, but is {size:,}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} must be a JSON object, but cannot be read as one: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must be a JSON object, but is a {type(value).__name__}")
    return value


def write_bytes(path: str | Path, *parts: bytes) -> None:
    """Write `parts`, bytes or buffers of bytes, one after another to a new file. May raise `OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def shown(value: Any) -> str:
    """Return a name or a value out of a file as it may stand in a message: quoted, escaped, not endless."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:180]}… ({len(text):,} characters)"


def _manifest(directory: Path) -> dict[str, dict[str, Any]]:
    files = read_json(directory, MANIFEST).get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise CheckpointError(f"{directory / MANIFEST} must name its files with size and sha256, but does not")
    return files


def _seal(directory: Path) -> None:
    """Put every file on the disk, then the manifest that names them."""
    files = {}
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        _sync(file)
        entry = {"size": file.stat().st_size, "sha256": _sha256(file)}
        files[file.relative_to(directory).as_posix()] = entry
    write_bytes(directory / MANIFEST, json.dumps({"files": files}, indent=2).encode() + b"\n")
    _sync(directory / MANIFEST)
    for path in directory.rglob("*"):
        if path.is_dir():
            _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    size = min(8 << 20, max(1, file.stat().st_size))  # the larger, the less often it wants the interpreter
    buffer = memoryview(bytearray(size))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, so that a directory left behind can be told from one being written."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process left of an earlier attempt at `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{'?' * 8}.partial"):
        try:
            with _locked(path):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # it is being written right now, or gone
            continue


@contextmanager
def reading_errors(directory: Path) -> Iterator[None]:
    """Turn what the operating system says while `directory` is read into a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or directory} cannot be read: {error.strerror or error}") from error


@contextmanager
def _storage_errors(target: Path, outcome: str = "what was there before is intact") -> Iterator[None]:
    try:
        yield
    except (OSError, StorageError) as error:  # or one of a writer that knows only the temporary directory
        cause = error.__cause__ if isinstance(error, StorageError) else error
        reason = getattr(cause, "strerror", None) or str(error)
        raise StorageError(f"{target} could not be written: {reason}; {outcome}") from cause
