"""Makes the house models again: prepares the texts, trains by the recipes here, measures, writes cards.

    python recipes/house/make.py --data DIRECTORY [--work runs/house] [--output src/loquela/house] [NAME ...]

The directory holds the files that cards.yaml names under `sources`. What is made already is left as it is, and what was
interrupted goes on; --again measures and writes anew. It runs on the CPU, or on a GPU where there is one; at the end it
says what each model took. Adapters need their base, `stories`, in the output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from loquela.api import LanguageModel, load
from loquela.checkpoint.house import HOUSE
from loquela.checkpoint.store import atomic_directory, load_model, write_model
from loquela.checkpoint.tensors import read_tensors, write_tensors
from loquela.training.receipt import code_hash, environment

sys.path.insert(0, str(Path(__file__).parent))
from cards import card
from measure import MEASURES
from prepare import PREPARED

HERE = Path(__file__).resolve().parent
BASE = "stories"
_STEADY = {"temperature": 0.5, "top_p": 0.9}
SETTINGS: dict[str, dict[str, Any]] = {
    "stories": _STEADY,
    "recurrent": _STEADY,
    "cuentos": _STEADY,
    "translator": {"do_sample": False, "max_new_tokens": 100},
}
"""What generation_config.json says of a model's use: small models lose the thread at the usual temperature of 0.8."""


def main() -> int:
    """Make the models that are named, else all."""
    said = yaml.safe_load((HERE / "cards.yaml").read_text("utf-8"))
    known = {**said["models"], **said["adapters"]}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--data", type=Path, required=True, help="the directory of the texts")
    parser.add_argument("--work", type=Path, default=Path("runs/house"), help="where texts and runs are kept")
    parser.add_argument("--output", type=Path, default=HOUSE, help="where the models go")
    parser.add_argument("--steps", type=int, help="so many for each, to try it out; the recipes say how many it takes")
    parser.add_argument("--again", action="store_true", help="measure and write what is there already")
    given = parser.parse_args()
    if wrong := set(given.names) - set(known):
        parser.error(f"models must be among {', '.join(known)}, but there is {', '.join(sorted(wrong))}")
    given.work.mkdir(parents=True, exist_ok=True)
    took = {}
    for name in given.names or known:
        place = given.output / ("adapters" if name in said["adapters"] else "") / name
        if (place / "receipt.json").is_file() and not given.again:
            print(f"{name}: there already, in {place}", file=sys.stderr)
            continue
        start = time.perf_counter()
        _prepare(name, given.data, given.work)
        sources = [said["sources"][key] | _hashed(given.data, said["sources"][key]) for key in known[name]["data"]]
        make = _adapter if name in said["adapters"] else _model
        changes = [] if given.steps is None else [f"max_steps={given.steps}"]
        made = make(name, known[name], sources, given.work.resolve(), given.output, changes)
        _install(place, made)
        size = sum(file.stat().st_size for file in place.iterdir())
        took[name] = f"{time.perf_counter() - start:7,.0f} s   {size / 1e6:5.2f} MB"
        print(f"{name}: {took[name]}", file=sys.stderr)
    for name, line in took.items():
        print(f"{name:<12}{line}")
    return 0


def _prepare(name: str, data: Path, work: Path) -> None:
    function, needed = PREPARED[name]
    for other in needed:
        _prepare(other, data, work)
    function(data, work)


def _hashed(data: Path, source: dict[str, str]) -> dict[str, str]:
    return {"sha256": hashlib.sha256((data / source["file"]).read_bytes()).hexdigest()}


def _loquela(work: Path, *arguments: str) -> None:
    """Run a verb where the texts are; what it says about its progress is seen."""
    command = [sys.executable, "-m", "loquela", *arguments, "--json"]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)


Writer = Callable[[Path], None]


def _model(
    name: str, said: dict[str, Any], sources: list[dict[str, str]], work: Path, output: Path, changes: list[str]
) -> Writer:
    """Train a model, and return what writes it into an empty directory."""
    _loquela(work, "train", str(HERE / f"{name}.yaml"), *changes)
    run = work / "runs" / name
    loaded = load_model(run)
    config = loaded.generation_config | SETTINGS.get(name, {})
    receipt = json.loads((run / "receipt.json").read_text("utf-8")) | {"sources": sources}
    receipt["made_by"]["command"] = f"python recipes/house/make.py --data DATA {name}"

    def write(place: Path) -> None:
        write_model(loaded.network.half(), loaded.tokenizer, place, generation_config=config)
        shutil.copy(run / "loss.csv", place)
        model = load(place)
        figures = MEASURES[said["measure"]](model, name, work)
        _json(place / "receipt.json", _portable(receipt | {"figures": figures}, work))
        (place / "README.md").write_text(
            card(name, said, sources, receipt, figures, _samples(model, said, None), None), "utf-8"
        )

    return write


def _adapter(
    name: str, said: dict[str, Any], sources: list[dict[str, str]], work: Path, output: Path, changes: list[str]
) -> Writer:
    """Tune an adapter for the base in `output`, and return what writes it into an empty directory."""
    base = BASE if output.resolve() == HOUSE else str((output / BASE).resolve())
    _loquela(work, "tune", str(HERE / f"{name}.yaml"), f"model={base}", *changes)
    run = work / "runs" / name
    result = json.loads((run / "tune_results.json").read_text("utf-8"))
    kept = ("train_loss", "val_loss", "val_bits_per_byte", "tokens", "seconds", "steps", "best_step", "parameters")
    import torch

    receipt = {
        "made_by": {"code_sha256": code_hash(), "command": f"python recipes/house/make.py --data DATA {name}"},
        "recipe": yaml.safe_load((run / "tune.yaml").read_text("utf-8")) | {"model": BASE},
        "sources": sources,
        **{key: result[key] for key in (*kept, "trainable_parameters", "metrics", "verdict")},
        "environment": environment(torch.device("cpu")),
    }

    def write(place: Path) -> None:
        config = json.loads((run / "adapter_config.json").read_text("utf-8")) | {"base_model_name_or_path": BASE}
        _json(place / "adapter_config.json", config)
        tensors = {key: stored.read() for key, stored in read_tensors(run / "adapter_model.safetensors").items()}
        halves = {key: tensor.half() for key, tensor in tensors.items()}
        write_tensors(place / "adapter_model.safetensors", halves, {"format": "pt"})
        shutil.copy(run / "loss.csv", place)
        model = load(output / BASE, adapter={name: place})
        figures = MEASURES[said["measure"]](model, name, work)
        _json(place / "receipt.json", _portable(receipt | {"figures": figures}, work))
        (place / "README.md").write_text(
            card(name, said, sources, receipt, figures, _samples(model, said, name), BASE), "utf-8"
        )

    return write


def _samples(model: LanguageModel, said: dict[str, Any], adapter: str | None) -> list[tuple[str, str]]:
    from loquela.generation.fill import fill

    if "texts" in said and model.network.kind == "encoder":
        filled = [fill(model.network, model.tokenizer, text) for text in said["texts"]]
        shown = [[f"{a.text} {math.exp(a.log_prob):.0%}" for a in one.tokens[0].top[:4]] for one in filled]
        return [(text, f" → {', '.join(answers)}") for text, answers in zip(said["texts"], shown, strict=True)]
    if "texts" in said:
        return [(text, f" → {model.generate(text, max_new_tokens=60).text}") for text in said["texts"]]
    room = {"max_new_tokens": 180, "seed": 0, "adapter": adapter}
    return [(prompt, model.generate(prompt, **room).text) for prompt in said["prompts"]]


def _install(place: Path, write: Writer) -> None:
    """Let a directory be written whole, with its manifest, and take the place of what was there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f"{place.name}-new")
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_directory(fresh) as temporary:
        write(temporary)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)


def _portable(value: Any, work: Path) -> Any:
    """The same without the work directory, which is this machine's."""
    if isinstance(value, dict):
        return {key: _portable(one, work) for key, one in value.items()}
    if isinstance(value, list):
        return [_portable(one, work) for one in value]
    return value.replace(str(work) + os.sep, "") if isinstance(value, str) else value


def _json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
