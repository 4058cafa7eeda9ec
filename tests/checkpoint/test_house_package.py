"""The wheel and the sdist carry the house: from the installed files alone a model opens, in an empty directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from loquela.checkpoint import house

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file.relative_to(house.HOUSE).as_posix() for file in house.HOUSE.rglob("*") if file.is_file())
BUILD = """import setuptools.build_meta as backend
backend.build_sdist("out")
backend.build_wheel("out")"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of both, built as pip would from a checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", checkout / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return checkout / "out"


def test_both_have_every_file(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"loquela/house/{name}" for name in FILES} <= names
    assert "loquela/serving/page/tour.json" in names
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/loquela/house/{name}" for name in FILES} <= inside


def test_what_the_wheel_has_is_enough(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    code = (
        "import loquela; assert 'installed' in loquela.__file__, loquela.__file__; "
        "print(loquela.load('stories', adapter='words').generate('Once', max_new_tokens=3, seed=0).text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list((tmp_path / "empty").iterdir())
