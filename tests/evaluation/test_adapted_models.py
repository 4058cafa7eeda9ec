"""A model that wears an adapter is asked with it, and not without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import TEXT, make

from loquela import peft
from loquela.api import LanguageModel, load
from loquela.engine.choosing import EngineName
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.run import evaluate
from loquela.text.tokenizer import Tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "ia3": {},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
}


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_likelihoods_are_those_of_the_adapted_model(
    method: str,
    engine: EngineName,
    tokenizer: Tokenizer,
    tmp_path: Path,
    rows_file: Callable[..., Path],
    questions: list[Any],
) -> None:
    network = make("llama", tokenizer).network
    LanguageModel(network, tokenizer).save(tmp_path / "base")
    peft.attach(network, peft.config_for(method, **SETTINGS[method]), "a", seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in peft.trainable(network, "a").values():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.3, generator=generator))
    peft.save_adapter(network, "a", tmp_path / "adapter", str(tmp_path / "base"))

    model, base = load(tmp_path / "base", tmp_path / "adapter"), load(tmp_path / "base")
    subject = LocalSubject(model, "adapted", engine=engine)
    assert subject.computes_together == (engine == "auto")
    context, choices = "Question: what sat?\nAnswer:", [" the cat", " the dog sat", " no"]
    for choice, found in zip(choices, subject.likelihoods(context, choices), strict=True):
        ids = tokenizer.encode(context + choice)
        given = len(tokenizer.encode(context))
        rows = model.logits(ids)[0, given - 1 : -1].log_softmax(-1)
        expected = float(rows.gather(-1, torch.tensor(ids[given:])[:, None]).sum())
        assert found.log_prob == pytest.approx(expected, abs=1e-4)
        (alone,) = subject.likelihoods(context, [choice])
        assert alone.log_prob == pytest.approx(expected, abs=1e-4)
        assert LocalSubject(base).likelihoods(context, [choice])[0].log_prob != pytest.approx(expected, abs=1e-4)
    prefix = TEXT[:200] + "\n\n"
    whole, shared = (subject.likelihoods(prefix + context, choices, prefix=p) for p in ("", prefix))
    for one, other in zip(whole, shared, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)

    (tmp_path / "text.txt").write_text(TEXT[:600])
    assert evaluate(subject, tmp_path / "text.txt").results["text"].scores["bits_per_byte"] == pytest.approx(
        model.score(TEXT[:600]).bits_per_byte
    )
    path = rows_file(questions)
    worn, bare = (evaluate(m, path, limit=6).results["set"].records for m in (model, base))
    assert worn != bare
    text = subject.complete(context, max_new_tokens=8, stop=())
    assert text == model.generate(context, max_new_tokens=8, do_sample=False).text
