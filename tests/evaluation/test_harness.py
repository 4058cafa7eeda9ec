"""The same tasks through lm-evaluation-harness: its own transformers model, our model in it, and our own numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from loquela.api import load
from loquela.checkpoint import llama2c
from loquela.checkpoint.store import save_model
from loquela.errors import UsageError
from loquela.evaluation.harness import harness_task, language_model
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.plan import Settings
from loquela.evaluation.run import evaluate, prepare_task

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(before)


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of 260,000 parameters."""
    model = llama2c.read(shared_data / "models" / "stories260K" / "stories260K.bin")
    directory = tmp_path_factory.mktemp("stories") / "model"
    save_model(model.network, model.tokenizer, directory, generation_config=model.generation_config)
    return directory


@pytest.fixture(scope="module")
def subject(stories: Path) -> LocalSubject:
    return LocalSubject(load(stories), "stories")


@pytest.fixture(scope="module")
def theirs(stories: Path) -> HFLM:
    return HFLM(pretrained=str(stories), batch_size=8, dtype="float32", device="cpu")


def asked(model: Any, task: Any) -> dict[str, float]:
    """What lm-eval finds, without its walk through all the tasks that it comes with."""
    name = task.config.task
    found = lm_eval.evaluate(model, {name: task}, bootstrap_iters=0, log_samples=False)["results"][name]
    return {key.removesuffix(",none"): value for key, value in found.items() if key.endswith(",none")}


@pytest.mark.parametrize(
    ("name", "shots", "limit"),
    [
        ("arc_easy", 0, 12),
        ("sst2", 2, 12),
        pytest.param("arc_easy", 3, 200, marks=pytest.mark.soak),
        pytest.param("sst2", 4, 200, marks=pytest.mark.soak),
        pytest.param("sciq", 0, 200, marks=pytest.mark.soak),
        pytest.param("copa", 0, 90, marks=pytest.mark.soak),
    ],
)
def test_multiple_choice_agrees_to_four_decimals(
    name: str, shots: int, limit: int, subject: LocalSubject, theirs: HFLM, shared_data: Path
) -> None:
    prepared, settings = prepare_task(name, data_dir=shared_data), Settings(shots=shots, limit=limit)
    ours = evaluate(subject, name, data_dir=shared_data, shots=shots, limit=limit).results[name].scores
    for model in (theirs, language_model(subject)):
        found = asked(model, harness_task(prepared, subject, settings))
        assert round(found["acc"], 4) == round(ours["accuracy"], 4)
        assert round(found["acc_bytes"], 4) == round(ours["accuracy_per_byte"], 4)


def test_next_word_agrees(subject: LocalSubject, theirs: HFLM, shared_data: Path) -> None:
    prepared, settings = prepare_task("lambada", data_dir=shared_data), Settings(limit=25)
    ours = evaluate(subject, "lambada", data_dir=shared_data, limit=25).results["lambada"].scores
    for model in (theirs, language_model(subject)):
        found = asked(model, harness_task(prepared, subject, settings))
        assert found["acc"] == ours["accuracy"]
        assert math.log(found["perplexity"]) == pytest.approx(math.log(ours["target_perplexity"]), abs=5e-5)


def test_generation_agrees(subject: LocalSubject, theirs: HFLM, shared_data: Path) -> None:
    prepared, settings = prepare_task("multi30k_en_de", data_dir=shared_data), Settings(limit=6)
    task = prepared.task.model_copy(update={"max_new_tokens": 16, "stop": ["."]})
    prepared = type(prepared)(task, prepared.rows, prepared.pool, prepared.directories)
    ours = evaluate(subject, task, data_dir=shared_data, limit=6).results["multi30k_en_de"].scores
    for model in (theirs, language_model(subject)):
        found = asked(model, harness_task(prepared, subject, settings))
        assert found["chrf"] == pytest.approx(ours["chrf"], abs=1e-4)
        assert found["bleu"] == pytest.approx(ours["bleu"], abs=1e-4)


class Request:
    """What lm-eval hands to a model."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def test_rolling_likelihoods_are_lm_evals(subject: LocalSubject, theirs: HFLM, shared_data: Path) -> None:
    text = (shared_data / "lm" / "tinystories_sample.txt").read_text()
    requests = [Request(text), Request(text[:300])]
    ours = language_model(subject).loglikelihood_rolling(requests)
    with torch.no_grad():
        found = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(found, rel=1e-5)


def test_single_likelihoods_are_lm_evals(subject: LocalSubject, theirs: HFLM) -> None:
    pairs = [
        ("Once upon a time", " there was"),
        ("Lily had a ", "ball"),
        ("", "Once upon"),
        ("Lily had a", " red ball."),
    ]
    requests = [Request(*pair) for pair in pairs]
    ours = language_model(subject).loglikelihood(requests)
    for mine, other in zip(ours, theirs.loglikelihood(requests, disable_tqdm=True), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]


def test_what_has_no_counterpart_is_said(subject: LocalSubject, shared_data: Path) -> None:
    for name in ("winogrande", "search_en"):
        with pytest.raises(UsageError, match="no counterpart"):
            harness_task(prepare_task(name, data_dir=shared_data), subject, Settings(limit=3))
    with pytest.raises(UsageError, match="do_sample must be false"):
        language_model(subject).generate_until([Request("x", {"do_sample": True, "temperature": 1.0})])
