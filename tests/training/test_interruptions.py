"""What a run must survive, with real processes and real signals."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from interrupting import Tally, Trainer, decided, write_recipe

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> dict[str, bytes]:
    code, out, err = Trainer(recipe, f"data={recipe.parent / 'text.txt'}", cwd=recipe.parent).finish()
    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 60
    return decided(recipe.parent / "out")


def test_killed_and_stopped_at_any_moment_it_ends_bit_for_bit_the_same(
    recipe: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    choose = random.Random()

    def start() -> Trainer:
        return Trainer(recipe, f"data={recipe.parent / 'text.txt'}", cwd=tmp_path)

    for end in ("kill", "kill in a save", signal.SIGTERM, "kill", signal.SIGINT):
        trainer = start()
        assert trainer.wait_for_rows(trainer.rows() + choose.randint(1, 5))
        if end == "kill in a save":
            assert trainer.wait_until(trainer.saving, pause=0)
        if isinstance(end, signal.Signals):
            code, out, err = trainer.end(end)
            assert code == 130, err
            assert out == ""
            assert "the same command goes on from there" in err
        else:
            code, _, _ = trainer.end(signal.SIGKILL)
            assert code == -signal.SIGKILL
    code, out, err = start().finish()
    assert code == 0, err
    assert "going on from checkpoint-" in err
    assert decided(tmp_path / "out") == undisturbed
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.endswith((".partial", ".removed", ".part"))]
    code, out, err = start().finish()
    assert "finished: nothing is left to train" in err
    assert json.loads(out)["steps"] == 60


@pytest.mark.soak
def test_a_hundred_kills_and_twenty_inside_a_save(tmp_path: Path) -> None:
    """RELIABILITY 11, on the recipe that is shipped and by the command that is documented; see `Tally` for parts."""
    arguments = ("max_steps=60", "save_steps=7", "seed=11", "output_dir=out")
    recipe = REPOSITORY / "recipes" / "shakespeare.yaml"
    tally = Tally("interruptions", tmp_path)
    reference = tally.place / "reference"
    if not (reference / "whole").exists():
        shutil.rmtree(reference, ignore_errors=True)
        reference.mkdir()
        assert Trainer(recipe, *arguments, cwd=reference).finish()[0] == 0
        (reference / "whole").touch()
    expected = decided(reference / "out")
    seconds = float((reference / "out" / "timing.csv").read_text().splitlines()[-1].split(",")[1])
    while tally["kills"] < 100 or tally["saves"] < 20:
        place = tally.place / "victim"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        choose = random.Random(11 + tally["victims"])
        kills = saves = 0
        while True:
            trainer = Trainer(recipe, *arguments, cwd=place)
            if tally["saves"] + saves < 20 and choose.random() < 0.2:
                ended = not trainer.wait_until(trainer.saving, pause=0)
                saves += not ended
            else:
                moment = choose.uniform(0.0, seconds + 5)
                try:
                    trainer.process.wait(moment)
                    ended = True
                except subprocess.TimeoutExpired:
                    ended = False
                kills += not ended
            if ended:
                code, _, err = trainer.finish()
                assert code == 0, err
                break
            trainer.end(signal.SIGKILL)
        assert decided(place / "out") == expected, f"victim {tally['victims'] + 1}"
        tally.add(kills=kills, saves=saves, victims=1)
