"""The output directory: one run lives in it, one trainer at a time works on it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from loquela.checkpoint.files import finish_install, read_json, verify
from loquela.data.readers import file_hash
from loquela.errors import CheckpointError, DirectoryInUseError, LoquelaError, StorageError
from loquela.training.recipe import Recipe
from loquela.training.recipe_file import read

__all__ = ["checkpoints", "claim", "finished_result", "locked", "newest", "remove", "remove_old", "write_file"]

T = TypeVar("T")

_FILES = """loss.csv timing.csv loss.html report.html receipt.json train_results.json manifest.json config.json
    generation_config.json model.safetensors model.safetensors.index.json tokenizer.json tokenizer_config.json
    special_tokens_map.json chat_template.jinja data/train.bin data/val.bin data/corpus.json data/wandb.id
    data/source.sha256 recipe.yaml""".split()
"""What a run writes beside its checkpoints; the recipe, which marks the directory as a run's, is removed last."""
_DIRECTORIES = ("data/tokenizer", "tensorboard", "wandb")
_LEFTOVERS = (".checkpoint-*", ".*.part", "data/.*.part", "data/*.part", "data/.tokenizer*")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_WAY_OUT = "choose another output_dir, or begin anew in this one with overwrite_output_dir=true"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the directory and hold it; raises `DirectoryInUseError` while another trainer does.

    The kernel drops the lock with the process that holds it, however that ended, so no lock is ever stale.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(f"output_dir {directory} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 20).decode(errors="replace").strip()
            raise DirectoryInUseError(
                f"output_dir {directory} must be one trainer's at a time, but process {holder or '?'} trains in it; "
                "wait for it, or choose another output_dir"
            ) from None
        os.truncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def claim(directory: Path, recipe: Recipe) -> Recipe:
    """Make the locked directory that of this recipe and this text, or find that it is so already.

    Returns the recipe to go on by: where it leaves the `dtype` to the run, with the one that the run began with.

    Raises `DirectoryInUseError` when it holds another run, or files that are no run's.
    """
    digest = ",".join(map(file_hash, recipe.sources))
    file, source = directory / "recipe.yaml", directory / "data" / "source.sha256"
    if file.exists() and recipe.overwrite_output_dir:
        _wipe(directory)
    if not file.exists():
        if foreign := _foreign(directory):
            raise DirectoryInUseError(
                f"output_dir {directory} must be empty or hold a run of this recipe, but holds {', '.join(foreign[:5])}"
                f"{' …' if len(foreign) > 5 else ''}; choose another output_dir"
            )
        source.parent.mkdir(exist_ok=True)
        write_file(source, digest + "\n")
        write_file(file, recipe.to_yaml())
        return recipe
    _sweep(directory)
    try:
        begun = Recipe.load({"dtype": "float32"} | read(file))
        if recipe.dtype == "auto":
            recipe = recipe.model_copy(update={"dtype": begun.dtype})
        differences = begun.differences(recipe)
    except LoquelaError as error:
        raise DirectoryInUseError(
            f"output_dir {directory} holds a run that cannot be read: {error}; {_WAY_OUT}"
        ) from None
    if differences:
        raise DirectoryInUseError(
            f"output_dir {directory} holds a run of another recipe ({'; '.join(differences)}); {_WAY_OUT}"
        )
    if not source.exists() or source.read_text().strip() != digest:
        raise DirectoryInUseError(
            f"output_dir {directory} holds a run on another text: {recipe.data} has changed since; {_WAY_OUT}"
        )
    return recipe


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest first."""
    found = {int(m[1]): p for p in directory.iterdir() if (m := _CHECKPOINT.fullmatch(p.name))}
    return [found[step] for step in sorted(found, reverse=True)]


def newest(directory: Path, restore: Callable[[Path], T], what: str) -> tuple[T | None, list[str]]:
    """Return what `restore` gives of the newest intact checkpoint, if there is one, and what is to be said aloud.

    One whose `restore` raises `CheckpointError` is passed over. `what` begins anew when none is intact.
    """
    notes = []
    for checkpoint in checkpoints(directory):
        try:
            restored = restore(checkpoint)
        except CheckpointError as error:
            notes.append(f"{checkpoint.name} is damaged and was passed over: {error}")
            continue
        return restored, [*notes, f"going on from {checkpoint.name}"]
    if notes:
        notes.append(f"no checkpoint is intact: {what} begins anew")
    return None, notes


def remove_old(directory: Path, keep: int | None, kept: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints (None: none is removed), and never that of step `kept`."""
    for old in checkpoints(directory)[keep:] if keep is not None else ():
        if old.name != f"checkpoint-{kept}":
            remove(old)


def finished_result(
    directory: Path, file: str, read: Callable[[dict[str, Any]], T], say: Callable[[str], None], *, what: str, verb: str
) -> T | None:
    """Return what a run came to that has ended, as `read` makes it of its `file`, if all is still as it was saved."""
    finish_install(directory)
    if not (directory / file).is_file():
        return None
    try:
        verify(directory)
        result = read(read_json(directory, file))
    except (TypeError, CheckpointError) as error:
        say(f"the finished {what} is damaged and will be made again: {error}")
        return None
    say(f"{directory} holds this very run, finished: nothing is left to {verb}")
    return result


def remove(path: Path) -> None:
    """Remove a directory so that what a kill leaves of it is no checkpoint any more."""
    try:
        hidden = path.with_name(f".{path.name}.removed")
        path.replace(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        raise StorageError(f"{path} could not be removed: {error.strerror}") from error


def write_file(file: Path, content: str) -> None:
    """Write a small file so that it is there whole or not at all; raises `StorageError`."""
    temporary = file.with_name(f".{file.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror}") from error


def _foreign(directory: Path) -> list[str]:
    """What is there although no recipe was written yet, but for what a kill just before that leaves."""
    ours = {".lock", ".recipe.yaml.part", "data", "data/source.sha256", "data/.source.sha256.part"}
    inside = [f"data/{p.name}" for p in directory.glob("data/*")]
    return sorted({*(p.name for p in directory.iterdir()), *inside} - ours)


def _wipe(directory: Path) -> None:
    for checkpoint in checkpoints(directory):
        remove(checkpoint)
    for path in [*(directory / name for name in _DIRECTORIES), *directory.glob("data/part-*")]:
        if path.exists():
            remove(path)
    try:
        for file in [*(p for p in directory.iterdir() if _SHARD.fullmatch(p.name)), *(directory / n for n in _FILES)]:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{directory} could not be emptied: {error.strerror}") from error


def _sweep(directory: Path) -> None:
    """Remove what a kill has left half-written or half-removed."""
    for pattern in _LEFTOVERS:
        for path in directory.glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
