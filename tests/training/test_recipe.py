from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from loquela.errors import RecipeError
from loquela.training.recipe import Recipe

SMALL = {"model": {"model_type": "llama"}, "data": "shakespeare", "output_dir": "out"}


def test_overrides_win_and_reach_inside() -> None:
    recipe = Recipe.load(SMALL, ["max_steps=60", "seed=11", "muon.momentum=0.5", "model.hidden_size=32", "eval_steps="])
    assert (recipe.max_steps, recipe.seed, recipe.muon.momentum, recipe.eval_steps) == (60, 11, 0.5, None)
    assert recipe.model == {"model_type": "llama", "hidden_size": 32}
    assert SMALL["model"] == {"model_type": "llama"}, "what was given is not changed"


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3"])
def test_numbers_as_people_write_them(text: str) -> None:
    assert Recipe.load(SMALL, [f"learning_rate={text}"]).learning_rate == 0.001


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_step=60", "unknown key 'max_step'; did you mean 'max_steps'?"),
        ("learningrate=1", "unknown key 'learningrate'; did you mean 'learning_rate'?"),
        ("muon.momentums=1", "unknown key 'muon.momentums'; did you mean 'momentum'?"),
        ("tokenizer.size=1", "unknown key 'tokenizer.size'"),
        ("max_steps=0", "max_steps: input should be greater than or equal to 1, but is 0"),
        ("max_steps=sixty", "max_steps: input should be a valid integer"),
        ("learning_rate=.nan", "learning_rate: input should be"),
        ("tokenizer.kind=bpee", "tokenizer.kind must be one of bpe, wordpiece, unigram, char, byte, but is 'bpee'"),
        ("lr_scheduler_type=linea", "did you mean 'linear'?"),
        ("objective=casual", "did you mean 'causal'?"),
        ("optim=sgd", "optim: input should be 'adamw_torch_fused' or 'muon', but is 'sgd'"),
        ("seed", "an override must be key=value, but is 'seed'"),
        ("seed.x=1", "seed: input should be a valid integer"),
        ("data.x=1", "'data.x' needs 'data' to hold keys, but it is 'shakespeare'"),
        ("model=[", "model= must be followed by a YAML value"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(SMALL, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(RecipeError, match=r"'max_step'.*'sead'"):
        Recipe.load({**SMALL, "max_step": 1, "sead": 2})
    with pytest.raises(RecipeError, match="model must be given; data must be given; output_dir must be given"):
        Recipe.load({})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed: 1\nseed: 2\n", "given twice"),
        (b"a: &x [1]\nb: *x\n", "no aliases"),
        (b"- 1\n", "'key: value' lines"),
        (b"", "'key: value' lines"),
        (b"\xff\xfe", "must be YAML"),
        (b"a: [" * 5000, "must be YAML"),
        (b"x: !!python/object/apply:os.system [ls]", "must be YAML"),
        (b"#" * (2 << 20), "at most"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=said) as caught:
        Recipe.load(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        Recipe.load(tmp_path / "none.yaml")


@example({"sample_prompt": "\x85"})
@example({"sample_prompt": "\u2028 \ufeff\x00"})
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**63 - 1),
            "max_steps": st.integers(1, 10**6),
            "learning_rate": st.floats(0, 10),
            "sample_prompt": st.text(st.characters(codec="utf-8")),
            "optim": st.sampled_from(["muon", "adamw_torch_fused"]),
            "tokenizer": st.fixed_dictionaries({"kind": st.sampled_from(["bpe", "char"])}),
            "muon": st.fixed_dictionaries({"momentum": st.floats(0, 0.99)}),
        },
    )
)
def test_what_is_written_reads_back_the_same(values: dict[str, object]) -> None:
    recipe = Recipe.load({**SMALL, **values})
    again = Recipe.load(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert recipe.differences(again) == []


def test_differences_that_decide_the_weights_are_named() -> None:
    one = Recipe.load(SMALL)
    assert one.differences(Recipe.load(SMALL, ["logging_steps=1", "save_steps=3", "output_dir=elsewhere"])) == []
    assert one.differences(Recipe.load(SMALL, ["max_steps=9", "model.hidden_size=8"])) == [
        "model.hidden_size: default → 8",
        "max_steps: default → 9",
    ]


def test_a_file_of_text_is_written_with_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(Recipe.load({**SMALL, "data": "mine.txt"}).to_yaml())["data"] == str(tmp_path / "mine.txt")
    assert yaml.safe_load(Recipe.load(SMALL).to_yaml())["data"] == "shakespeare"


def test_what_belongs_to_one_call_is_not_written() -> None:
    """Else the recipe that a run leaves would wipe the run when it is trained again."""
    recipe = Recipe.load(SMALL, ["overwrite_output_dir=true", "resume_from_checkpoint=false"])
    again = Recipe.load(yaml.safe_load(recipe.to_yaml()))
    assert (again.overwrite_output_dir, again.resume_from_checkpoint) == (False, True)


def test_a_curriculum_must_fit() -> None:
    recipe = Recipe.load(SMALL, ["block_size=64", "curriculum.block_size=16"])
    assert recipe.curriculum is not None
    assert recipe.curriculum.ratio == 0.6
    with pytest.raises(RecipeError, match=r"curriculum.block_size must divide block_size, but is 24"):
        Recipe.load(SMALL, ["block_size=64", "curriculum.block_size=24"])
