"""lm-eval asks our server and gets the numbers that the library gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import loquela

Running = Any  # conftest.Running
PAIRS = [("The cat", " sat on"), ("the dog", " sat"), ("happy", ", n")]


@pytest.mark.filterwarnings("ignore")
def test_likelihoods_and_texts(server: Running, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("lm_eval", "tenacity", "aiohttp"):
        pytest.importorskip(needed, reason="lm-eval[api] asks the server")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    harness = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(model_directory),
        tokenized_requests=True,
        max_length=512,
        batch_size=1,
    )
    found = harness.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)])
    model = loquela.load(model_directory)
    for (context, continuation), (log_prob, greedy) in zip(PAIRS, found, strict=True):
        held = len(model.tokenizer.encode(context))
        ids = model.tokenizer.encode(context + continuation)
        rows = model.logits(ids)[0].double().log_softmax(-1)
        expected = sum(float(rows[i - 1, ids[i]]) for i in range(held, len(ids)))
        assert log_prob == pytest.approx(expected, abs=1e-4)
        assert greedy == all(int(rows[i - 1].argmax()) == ids[i] for i in range(held, len(ids)))
    asked = Instance("generate_until", {}, ("The cat", {"until": ["the"], "max_gen_toks": 10, "temperature": 0}), 0)
    text = model.generate("The cat", temperature=0, max_new_tokens=10, stop=["the"]).text
    assert harness.generate_until([asked]) == [text]
