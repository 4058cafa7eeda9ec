"""Saving that fails at any point, and what is found afterwards."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from loquela.checkpoint.files import (
    MANIFEST,
    atomic_directory,
    finish_install,
    inside,
    install_files,
    verify,
    verify_ahead,
)
from loquela.checkpoint.store import load_model, opened, save_model, write_model
from loquela.errors import CheckpointError, StorageError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

Make = Callable[..., Network]
OPERATIONS = ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


class Disk:
    """Counts what is asked of the disk and fails the `fail_at`th time; with `dead`, every time after that too."""

    def __init__(self, fail_at: int = 0, code: int = errno.ENOSPC, dead: bool = False) -> None:
        self.fail_at, self.code, self.dead, self.count = fail_at, code, dead, 0

    def asked(self) -> None:
        self.count += 1
        if self.fail_at and (self.count == self.fail_at or (self.dead and self.count > self.fail_at)):
            raise OSError(self.code, os.strerror(self.code))

    @contextmanager
    def failing(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(os, name, self._wrapped(getattr(os, name)))
            patch.setattr(Path, "write_text", self._half(Path.write_text))
            yield

    def _wrapped(self, operation: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            self.asked()
            return operation(*args, **kwargs)

        return wrapped

    def _half(self, write_text: Callable[..., int]) -> Callable[..., int]:
        def wrapped(path: Path, text: str, *args: object, **kwargs: object) -> int:
            try:
                self.asked()
            except OSError:
                write_text(path, text[: len(text) // 2], *args, **kwargs)  # a short write before the error
                raise
            return write_text(path, text, *args, **kwargs)

        return wrapped


def content(directory: Path) -> dict[str, bytes]:
    """Every file but those that a crash left in a temporary directory, which nobody opens."""
    files = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if ".partial/" not in name}


def operations(save: Callable[[], None]) -> int:
    disk = Disk()
    with disk.failing():
        save()
    return disk.count


CODES = [(errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)]


@pytest.mark.parametrize(("code", "dead"), CODES)
def test_a_new_directory_is_whole_or_not_there(
    make: Make, tokenizer: Tokenizer, tmp_path: Path, code: int, dead: bool
) -> None:
    """Fail each write, fsync, rename … in turn; `dead`: from there on, as a crash leaves the disk."""
    network, target = make(), tmp_path / "model"
    count = operations(lambda: save_model(network, tokenizer, target))
    assert count > 20
    expected = content(target)
    shutil.rmtree(target)
    failures: list[str] = []
    for fail_at in range(1, count + 1):
        try:
            with Disk(fail_at, code, dead).failing():
                save_model(network, tokenizer, target)
            assert target.exists()  # what failed was not needed, such as making a parent that is there
        except StorageError as error:
            failures.append(str(error))
        if target.exists():  # or only the last fsync failed, after the rename
            assert content(target) == expected
            load_model(target)
            shutil.rmtree(target)
        if not dead:
            assert list(tmp_path.iterdir()) == []
    assert len(failures) >= count - 2
    for message in failures:
        assert message == f"{target} could not be written: {os.strerror(code)}; what was there before is intact"
    save_model(network, tokenizer, target)  # what crashes left behind does not stand in the way, nor stay
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("code", "dead"), CODES)
def test_a_model_saved_over_another_loads_as_the_old_or_the_new_one(
    make: Make, tokenizer: Tokenizer, tmp_path: Path, code: int, dead: bool
) -> None:
    old, new = make("gpt2", seed=1), make("llama", seed=2)
    template = tmp_path / "template"
    tokenizer.chat_template = "old"
    save_model(old, tokenizer, template, extra_files={"extra/notes.txt": b"old"})
    (template / "mine.txt").write_text("kept")
    before = content(template)
    target = tmp_path / "model"

    def save() -> None:
        save_model(new, None, target)

    shutil.copytree(template, target)
    count = operations(save)
    after = content(target)
    assert set(after) == {"config.json", "generation_config.json", "model.safetensors", MANIFEST, "mine.txt"}
    outcomes = set()
    for fail_at in range(1, count + 1):
        shutil.rmtree(target)
        shutil.copytree(template, target)
        failed = True
        with Disk(fail_at, code, dead).failing():
            try:
                save()
                failed = False
            except StorageError:
                pass
        loaded = load_model(target)  # finishes what was begun
        found = content(target)
        assert found in (before, after)
        assert loaded.network.config.model_type == ("gpt2" if found == before else "llama")
        assert failed or found == after
        outcomes.add((failed, found == after))
    tokenizer.chat_template = None
    assert {(True, False), (True, True)} <= outcomes  # before the one rename, and after it


def test_a_save_that_went_wrong_does_not_hinder_the_next(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "model"
    save_model(make(seed=1), None, target)
    for fail_at in range(1, 40, 3):
        with Disk(fail_at, dead=True).failing():
            try:
                save_model(make(seed=2), None, target)
            except StorageError:
                continue
    save_model(make(seed=3), None, target)
    expected = make(seed=3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_model(target).network.state_dict().items())
    assert not [path for path in target.iterdir() if path.name.startswith(".")]


def test_install_moves_a_finished_directory_into_another(make: Make, tmp_path: Path) -> None:
    source, target = tmp_path / "run" / "final", tmp_path / "run"
    with atomic_directory(source) as temporary:
        write_model(make(), None, temporary)
    (target / "loss.csv").write_text("step\n")
    (target / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier model")
    install_files(source, target)
    assert sorted(p.name for p in target.iterdir()) == [
        "config.json",
        "generation_config.json",
        "loss.csv",
        MANIFEST,
        "model.safetensors",
    ]
    load_model(target)


def test_a_failure_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def cut_off(error: BaseException) -> None:
        with atomic_directory(tmp_path / "new") as temporary:
            (temporary / "half").write_text("…")
            raise error

    for error in (ZeroDivisionError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            cut_off(error)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(StorageError, match="exists already"), atomic_directory(tmp_path / "there"):
        raise AssertionError("never entered")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"exists|Not a directory"), atomic_directory(tmp_path / "file" / "new"):
        raise AssertionError("never entered")


def test_two_who_save_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """One of them wins; the other's temporary directory is not taken for one that a crash left."""

    def both() -> None:
        with atomic_directory(tmp_path / "model") as first, atomic_directory(tmp_path / "model") as second:
            assert first != second
            assert first.is_dir()
            (first / "a").write_text("first")
            (second / "a").write_text("second")

    with pytest.raises(StorageError, match=r"exist|not empty"):
        both()
    assert content(tmp_path / "model")["a"] == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_manifest_names_every_file_with_its_sum(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import hashlib

    save_model(make(), tokenizer, tmp_path / "m", extra_files={"deep/er/notes.txt": b"hello"})
    files = content(tmp_path / "m")
    manifest = json.loads(files.pop(MANIFEST))["files"]
    assert manifest == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    assert "deep/er/notes.txt" in manifest


def test_files_have_the_rights_that_the_umask_gives(make: Make, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(make(), None, tmp_path / "m")
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "m" / "model.safetensors").stat().st_mode & 0o777 == 0o640


# -- damage


def flip_bits(directory: Path, count: int, seed: int) -> None:
    """Flip one bit at `count` places of all files, each by itself; every one must be noticed when loading."""
    rng = random.Random(seed)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    sizes = [path.stat().st_size for path in files]
    places = [(path, 0) for path in files]  # every file at least once, the large ones often
    places += [(path, 1) for path in rng.choices(files, sizes, k=count - len(files))]
    for path, _ in places:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        original = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_model(directory)
        path.write_bytes(original)
    load_model(directory)


def test_one_flipped_bit_is_noticed(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(make(), tokenizer, tmp_path / "m")
    flip_bits(tmp_path / "m", 60, seed=1)


@pytest.mark.soak
def test_one_flipped_bit_at_1000_places_is_noticed(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(make(), tokenizer, tmp_path / "m")
    flip_bits(tmp_path / "m", 1000, seed=2)


def test_verify_says_all_that_is_wrong_and_the_way_out(make: Make, tmp_path: Path) -> None:
    save_model(make(), None, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").unlink()
    (tmp_path / "m" / "config.json").write_text("{}")
    with (tmp_path / "m" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CheckpointError) as caught:
        verify(tmp_path / "m")
    for part in (
        "'generation_config.json' is missing",
        "'config.json' must have",
        "bytes, but has 2",
        "'model.safetensors' has changed",
        "delete manifest.json if the change was meant",
    ):
        assert part in str(caught.value)


def test_what_was_verified_ahead_counts_for_the_next_load(make: Make, tmp_path: Path) -> None:
    save_model(make(), None, tmp_path / "m")
    good = (tmp_path / "m" / "config.json").read_text()
    (tmp_path / "m" / "config.json").write_text(good + " ")
    verify_ahead(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"'config\.json' must have"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(good)
    load_model(tmp_path / "m")
    verify_ahead(tmp_path / "m")
    load_model(tmp_path / "m")


def test_what_the_block_raises_comes_after_what_is_damaged(make: Make, tmp_path: Path) -> None:
    save_model(make(), None, tmp_path / "m")
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "m"):
        raise ZeroDivisionError
    (tmp_path / "m" / "generation_config.json").write_text("{ }")
    with pytest.raises(CheckpointError, match="is not what was saved"), opened(tmp_path / "m"):
        raise ZeroDivisionError


def test_a_directory_without_a_manifest_is_taken_as_it_is(make: Make, tmp_path: Path) -> None:
    save_model(make(), None, tmp_path / "m")
    (tmp_path / "m" / MANIFEST).unlink()
    verify(tmp_path / "m")
    load_model(tmp_path / "m")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [1]}', '{"files": {"a": 1}}', "{" * 100_000, "\xff"])
def test_a_manifest_that_is_none(make: Make, tmp_path: Path, text: str) -> None:
    save_model(make(), None, tmp_path / "m")
    (tmp_path / "m" / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_model(tmp_path / "m")


# -- paths

PATHS = [
    "../secret",
    "a/../../secret",
    "..",
    "/etc/passwd",
    "//etc/passwd",
    "..\\secret",
    "C:\\secret",
    "C:/secret",
    "\\\\host\\share",
    "a\0b",
    "../secret\0.safetensors",
    "./../secret",
    "a/b/../../../secret",
    "file:///etc/passwd",
    "...//../secret",
    "link",
    "linked/secret",
    "loop",
    "chain",
]


@pytest.mark.parametrize("name", PATHS)
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    directory = tmp_path / "model"
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "link").symlink_to(tmp_path / "secret")
    (directory / "linked").symlink_to(tmp_path)
    (directory / "loop").symlink_to(directory / "loop")
    (directory / "chain").symlink_to(directory / "linked" / "secret")
    with pytest.raises(CheckpointError):
        inside(directory, name)


def test_links_within_the_directory_and_in_the_cache_of_hugging_face_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert inside(snapshot, "config.json").read_text() == "{}"
    (snapshot / "own.json").symlink_to("config.json")
    assert inside(snapshot, "own.json").read_text() == "{}"
    (tmp_path / "secret").write_text("")
    (snapshot / "out.json").symlink_to("../../../secret")
    with pytest.raises(CheckpointError, match="leads out of its directory"):
        inside(snapshot, "out.json")


@pytest.mark.parametrize("name", [*PATHS, "linked/x", "manifest.json/../../x"])
def test_an_unfinished_move_cannot_be_used_to_write_elsewhere(make: Make, tmp_path: Path, name: str) -> None:
    """A directory from a stranger may hold a `.incoming`; opening it finishes the move, but only inside."""
    target, outside = tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("untouched")
    (tmp_path / "secret").write_text("untouched")
    save_model(make(), None, target)
    (target / "linked").symlink_to(outside)
    for place in (target, target / ".incoming"):
        place.mkdir(exist_ok=True)
        files = {name: {"size": 0, "sha256": ""}, "ok.txt": {"size": 0, "sha256": ""}}
        (place / MANIFEST).write_text(json.dumps({"files": files}))
    (target / ".incoming" / "linked").mkdir()
    for file in ("linked/secret", "linked/x", "ok.txt"):
        (target / ".incoming" / file).write_text("evil")
    with pytest.raises(CheckpointError):
        load_model(target)
    assert content(outside) == {"secret": b"untouched"}
    assert (tmp_path / "secret").read_text() == "untouched"


def test_an_empty_or_linked_incoming_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / ".incoming").mkdir(parents=True)
    finish_install(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / MANIFEST).write_text('{"files": {}}')
    (tmp_path / "b" / ".incoming").symlink_to(tmp_path / "c")
    finish_install(tmp_path / "b")
    assert (tmp_path / "c" / MANIFEST).exists()
