"""Encoders that label texts, asked as what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import FIELDS, TEXT, Model
from transformers import BertForSequenceClassification, BertForTokenClassification

from loquela.checkpoint.store import save_model
from loquela.errors import UsageError
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.run import evaluate
from loquela.evaluation.spans import entity_f1
from loquela.models.base import architecture
from loquela.text.tokenizer import Tokenizer


def classifier(labels: dict[str, str], head: str = "BertForSequenceClassification") -> Model:
    tokenizer = Tokenizer.train("wordpiece", [TEXT], 300, special_tokens=("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    module = architecture("bert")
    raw = {"model_type": "bert", "architectures": [head], "vocab_size": tokenizer.vocab_size}
    network = module.NETWORK(module.CONFIG.from_dict({**raw, **FIELDS["bert"], "id2label": labels}))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
    return Model(network.eval(), tokenizer)


ROWS = [
    {"text": f"the {'cat' if i % 3 else 'dog sat on the'} log {i}", "label": ["no", "yes"][i % 2]} for i in range(40)
]


@pytest.mark.parametrize("labels", [{"0": "no", "1": "YES"}, {"0": "LABEL_0", "1": "LABEL_1"}])
def test_labels_are_those_of_transformers(
    labels: dict[str, str], rows_file: Callable[..., Path], tmp_path: Path
) -> None:
    model = classifier(labels)
    subject = LocalSubject(model, "bert")
    assert subject.kind == "classifier"
    found = evaluate(subject, rows_file(ROWS)).results["set"]
    save_model(model.network, model.tokenizer, tmp_path / "model")
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    expected = []
    for row in ROWS:
        with torch.no_grad():
            ids = torch.tensor([model.tokenizer.encode(row["text"])])
            expected.append(int(theirs(ids).logits.argmax()) == ["no", "yes"].index(row["label"]))
    assert found.scores["accuracy"] == sum(expected) / len(expected)
    assert set(found.scores) == {"accuracy", "macro_f1"}
    assert found.chance == 0.5
    assert found.n == 40


def test_labels_must_be_the_tasks(rows_file: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="must be those of task set"):
        evaluate(LocalSubject(classifier({"0": "red", "1": "blue"}), "bert"), rows_file(ROWS))
    quiz = rows_file([{"question": "q", "choices": ["a", "b"], "answer": 0}])
    with pytest.raises(UsageError, match="no text with a label"):
        evaluate(LocalSubject(classifier({"0": "no", "1": "yes"}), "bert"), quiz)


TAGS = ["O", "B-PET", "I-PET"]
SENTENCES = [
    {"tokens": ["the", *["cat", "dog"][: 1 + i % 2], "sat", "."], "tags": ["O", *TAGS[1 : 2 + i % 2], "O", "O"]}
    for i in range(24)
]


@pytest.mark.parametrize("name", ["set.jsonl", "set.conll"])
def test_tags_of_words_are_those_of_transformers(
    name: str, rows_file: Callable[..., Path], llama: LocalSubject, tmp_path: Path
) -> None:
    model = classifier({str(i): tag for i, tag in enumerate(TAGS)}, "BertForTokenClassification")
    path = rows_file(SENTENCES)
    if name == "set.conll":
        rows = (zip(row["tokens"], row["tags"], strict=True) for row in SENTENCES)
        path = tmp_path / name
        path.write_text("\n".join("".join(f"{word} NN {tag}\n" for word, tag in row) for row in rows))
    subject = LocalSubject(model, "bert")
    assert subject.kind == "tagger"
    found = evaluate(subject, path).results["set"]
    save_model(model.network, model.tokenizer, tmp_path / "model")
    theirs = BertForTokenClassification.from_pretrained(tmp_path / "model").eval()
    said = []
    for row in SENTENCES:
        encoding = model.tokenizer.backend.encode(row["tokens"], is_pretokenized=True)
        firsts = [encoding.word_ids.index(i) for i in range(len(row["tokens"]))]
        with torch.no_grad():
            choices = theirs(torch.tensor([encoding.ids])).logits[0].argmax(-1)
        said.append([TAGS[int(choices[place])] for place in firsts])
    gold = [row["tags"] for row in SENTENCES]
    pairs = [pair for a, b in zip(gold, said, strict=True) for pair in zip(a, b, strict=True)]
    assert found.scores == {
        "accuracy": pytest.approx(sum(a == b for a, b in pairs) / len(pairs)),
        "entity_f1": pytest.approx(entity_f1(gold, said)),
    }
    assert found.majority == pytest.approx(sum(tag == "O" for tags in gold for tag in tags) / len(pairs))
    assert found.n == 24
    with pytest.raises(UsageError, match="labels words"):
        evaluate(llama, path)
    with pytest.raises(UsageError, match="must be those of the rows"):
        evaluate(LocalSubject(classifier({"0": "X", "1": "Y"}, "BertForTokenClassification"), "bert"), path)
