"""Metrics beside the libraries that define them, on fixed cases and on random ones."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn import metrics as sklearn

from loquela.errors import UsageError
from loquela.evaluation.metrics import (
    CORPUS_METRICS,
    ITEM_METRICS,
    accuracy,
    f1_squad,
    macro_f1,
    matthews,
    ndcg,
    normalised,
    recall,
    reciprocal_rank,
    text_metric,
)

labelled = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)
words = st.lists(st.sampled_from("the cat sat on a mat , The dogs ran . ran running café".split()), max_size=12)
texts = words.map(" ".join)


@pytest.mark.filterwarnings("ignore:A single label")
@given(labelled)
def test_labels_as_scikit_learn_counts_them(pairs: list[tuple[int, int]]) -> None:
    gold, predicted = map(list, zip(*pairs, strict=True))
    assert accuracy(gold, predicted) == pytest.approx(sklearn.accuracy_score(gold, predicted))
    assert macro_f1(gold, predicted) == pytest.approx(sklearn.f1_score(gold, predicted, average="macro"))
    assert matthews(gold, predicted) == pytest.approx(sklearn.matthews_corrcoef(gold, predicted), abs=1e-12)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0]), st.integers()), min_size=2, max_size=30), st.integers(1, 12)
)
def test_ndcg_as_scikit_learn_counts_it(drawn: list[tuple[float, int]], k: int) -> None:
    relevances = [r for r, _ in drawn]
    places = np.arange(len(relevances), 0, -1)[None]
    if any(relevances):
        assert ndcg(relevances, k) == pytest.approx(sklearn.ndcg_score([relevances], places, k=k))
    else:
        assert ndcg(relevances, k) == 0


def test_rankings_by_hand() -> None:
    assert recall([0, 1, 0, 1], 2) == 0.5
    assert recall([0, 0], 2) == 0
    assert reciprocal_rank([0, 0, 1]) == pytest.approx(1 / 3)
    assert reciprocal_rank([0]) == 0


@settings(max_examples=25)
@given(st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_corpus_metrics_are_sacrebleus(cases: list[tuple[str, list[str]]]) -> None:
    answers, references = [a for a, _ in cases], [r for _, r in cases]
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    expected = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}
    for name, metric in CORPUS_METRICS.items():
        ours = metric(answers, references)(range(len(answers)))
        assert ours == pytest.approx(expected[name].corpus_score(answers, streams).score)


def test_bleu_and_chrf_of_a_known_case() -> None:
    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
    ]
    references.append(["The man bit him first.", "The man had bitten the dog."])
    assert CORPUS_METRICS["bleu"](answers, references)(range(3)) == pytest.approx(48.53, abs=0.01)  # sacrebleu's readme


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_rouge_is_that_of_rouge_score(answer: str, references: list[str]) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge1", "rouge2", "rougeL"):
        best = max(scorer.score(reference, answer)[name].fmeasure for reference in references)
        assert ITEM_METRICS[name](answer, references) == pytest.approx(best)


def test_short_answers_as_squad_compares_them() -> None:
    assert normalised("  The  Panthers' defense!") == "panthers defense"
    assert ITEM_METRICS["exact_match"]("the Denver Broncos.", ["Denver Broncos", "Broncos"]) == 1
    assert f1_squad("the Denver Broncos team", ["Denver Broncos"]) == pytest.approx(0.8)
    assert f1_squad("", [""]) == 1
    assert f1_squad("x", ["a"]) == 0
    assert ITEM_METRICS["exact_text"](" yes\n", ["yes"]) == 1
    assert ITEM_METRICS["exact_text"]("Yes", ["yes"]) == 0
    assert ITEM_METRICS["exact_number"]("$1,080", ["1080"]) == 1
    assert ITEM_METRICS["exact_number"]("1080.0", ["1080"]) == 1
    assert ITEM_METRICS["exact_number"]("", ["1080"]) == 0
    assert ITEM_METRICS["exact_number"]("nan", ["nan"]) == 0


def test_short_answers_beside_the_squad_script() -> None:
    squad = pytest.importorskip("transformers.data.metrics.squad_metrics")
    pairs = [
        ("in the year 1999", "1999"),
        ("A cat, a dog", "the dog"),
        ("", "x"),
        ("same words here", "here same words"),
    ]
    for answer, reference in pairs:
        assert f1_squad(answer, [reference]) == pytest.approx(squad.compute_f1(reference, answer))
        assert ITEM_METRICS["exact_match"](answer, [reference]) == squad.compute_exact(reference, answer)


def test_an_unknown_metric_is_said() -> None:
    assert text_metric("bleu") == "bleu"
    with pytest.raises(UsageError, match="did you mean 'rougeL'"):
        text_metric("rougel")
