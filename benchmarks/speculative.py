"""Tokens per second with guessing ahead and without: the same model and prompts, in turn, in one process.

The target is a trained model, since random weights neither copy nor agree with anything. It is a small one, so it is
measured a second time *made heavy*: its feed-forwards widened by zeros until a token reads as much as a model of 60
million parameters. That computes the same function, so all guesses meet the same fate, at the cost of a larger model.
The draft is trained here for about a minute on the stories that the target was trained on, with its tokenizer. Texts
are greedy and drawn; `copy` prompts hold a story, held out from training, and its beginning once more; `free` prompts
are beginnings alone. Every figure is the median over rounds of all tokens of all texts by their time, prompts included.

A run may be a piece of the whole, by widths, targets and kinds of text; what other pieces found stays in the record.
`--draft DIR` keeps the draft that the first piece trains for the others.

    python benchmarks/speculative.py [--model stories] [--data DIR] [--draft DIR] [--widths …] [--targets …] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import loquela
from loquela.api import LanguageModel, load
from loquela.engine.decoder import compiled, default_threads
from loquela.generation.completion import choices
from loquela.generation.settings import GenerationSettings
from loquela.generation.speculative import Draft, DraftModel, PromptLookup
from loquela.models.base import Network, architecture, config_from_dict
from machine import asked, record, recorded, spread

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "recipes" / "house"))

CLOCK = time.perf_counter
HEAVY, NEW, TEXTS = 60_000_000, 80, 6
DRAFT = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
WAYS = {
    "greedy": {"do_sample": False},
    "drawn": {"temperature": 0.8, "top_k": 25, "seed": 1},
}


def stories(data: Path, place: Path) -> tuple[Path, list[str]]:
    """The file of stories that the house model `stories` was trained on, and those that it was not."""
    from prepare import held_out_apart, stories_text

    stories_text(data, place)
    return place / "stories.jsonl", held_out_apart(place / "stories.jsonl")[1]


def trained_draft(target: LanguageModel, directory: Path, text: Path, place: Path, steps: int) -> LanguageModel:
    """A model of a layer with the target's tokenizer."""
    window = target.context_length
    recipe: dict[str, Any] = {
        "model": DRAFT | {"max_position_embeddings": window}, "tokenizer": str(directory), "data": str(text),
        "validation_fraction": 0.05, "block_size": 128, "per_device_train_batch_size": 16, "max_steps": steps,
        "learning_rate": 0.006, "muon": {"learning_rate": 0.03}, "warmup_steps": 20, "eval_steps": steps,
        "save_steps": steps, "output_dir": str(place / "draft"),
    }  # fmt: skip
    return load(loquela.train(recipe).model)


def heavy(network: Network, parameters: int) -> Network:
    """The same function in so many parameters: feed-forwards as wide as that needs, the new part zero."""
    config = network.config.to_dict()
    per_unit = 3 * config["hidden_size"] * config["num_hidden_layers"]
    more = (parameters - network.parameter_count()) // per_unit // 64 * 64
    config["intermediate_size"] += more
    wide: Network = architecture(config["model_type"]).NETWORK(config_from_dict(config))
    old = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            parameter.zero_()
            parameter[tuple(slice(size) for size in old[name].shape)] = old[name]
    return wide.eval()


def run(
    network: Network, model: LanguageModel, prompts: list[list[int]], how: GenerationSettings, draft: Draft | None
) -> tuple[float, list[list[int]]]:
    """Tokens per second over all prompts, and the tokens."""
    begin, written = CLOCK(), []
    for prompt in prompts:
        found = choices(network, model.tokenizer, prompt, how, end_ids=model.end_ids, draft=draft)
        written.append([piece.id for piece in found[0].tokens])
    return sum(map(len, written)) / (CLOCK() - begin), written


def measure(
    network: Network, draft: Network, model: LanguageModel, prompts: list[list[int]], way: str, rounds: int
) -> dict[str, dict[str, Any]]:
    """Every way to guess, in turn."""
    how = GenerationSettings(max_new_tokens=NEW, **WAYS[way])
    makes = {
        "none": lambda: None,
        "prompt lookup": lambda: PromptLookup(10),
        "draft": lambda: DraftModel(draft, network, how.num_assistant_tokens),
    }
    found: dict[str, dict[str, Any]] = {name: {"speed": []} for name in makes}
    texts: dict[str, list[list[int]]] = {}
    for number in range(rounds + 1):
        for name, make in makes.items():
            guesser = make()
            speed, texts[name] = run(network, model, prompts, how, guesser)
            if number:  # the first round warms up
                found[name]["speed"].append(speed)
            if guesser is not None:
                found[name] |= guesser.speculation.as_dict()
    assert texts["prompt lookup"] == texts["none"]
    assert way != "greedy" or texts["draft"] == texts["none"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stories", help="a trained LLaMA: a house model's name or a directory")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--draft", type=Path, help="a directory; trained and written there if it is not, else in passing"
    )
    parser.add_argument("--draft-steps", type=int, default=600)
    parser.add_argument("--widths", nargs="+", default=["float32", "int8"], choices=["float32", "int8", "int4"])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--texts", nargs="+", default=list(TEXTS_OF), choices=list(TEXTS_OF))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor: for a busy machine")
    given = parser.parse_args()
    if given.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    torch.set_num_threads(given.threads)
    model = load(given.model, engine="torch")
    held = {name: piece for name, piece in recorded(TITLE).items() if "command" in piece}
    with tempfile.TemporaryDirectory() as place:
        text, held_out = stories(given.data, Path(place))
        if given.draft and given.draft.is_dir():
            draft = load(given.draft, engine="torch")
        else:
            draft = trained_draft(model, directory_of(given.model), text, Path(place), given.draft_steps)
            if given.draft:
                draft.save(given.draft)
    prompts = prompts_of(model, held_out)
    sizes = model.network.parameter_count(), draft.network.parameter_count()
    print(*HEAD, sep="\n")
    for target in given.targets:
        network = heavy(model.network, HEAVY) if target == "heavy" else model.network
        for width in given.widths:
            quantize: Any = None if width == "float32" else width
            engine = compiled(network, quantize=quantize, threads=given.threads)
            guesser = compiled(draft.network, quantize=quantize, threads=given.threads)
            for kind in given.texts:
                found = measure(engine, guesser, model, prompts[kind.split()[0]], kind.split()[1], given.rounds)
                piece = {"found": found, "command": asked(), "sizes": sizes}
                held[f"{TARGETS[target]} | {width} | {kind.replace(' ', ' | ')}"] = piece
                print(line(*[*held.items()][-1]), flush=True)
                if given.record:
                    record(TITLE, asked(), table(held, given), held)


TITLE = "Guessing ahead"
TARGETS = {"small": "as it is", "heavy": "made heavy"}
TEXTS_OF = ["copy greedy", "free greedy", "free drawn"]
HEAD = [
    "| target | width | prompts | text | without | prompt lookup | ratio | right | tokens a run | draft | ratio "
    "| right | tokens a run |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
]


def line(key: str, piece: dict[str, Any]) -> str:
    """One line of the table."""
    return f"| {key} | {cells(piece['found'])} |"


def table(held: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """All pieces."""
    small, large = next(iter(held.values()))["sizes"]
    commands = dict.fromkeys(piece["command"] for piece in held.values())
    return [
        f"Target {Path(given.model).name}, {small:,} parameters; draft of {large:,}; compiled engine, {given.threads} "
        f"threads; {TEXTS} texts of {NEW} tokens, rounds in turn. Tokens/s: medians (smallest to largest). The texts "
        "with prompt lookup, and all greedy ones, were checked to be those without, token by token. Pieces: "
        + "; ".join(f"`{command}`" for command in commands),
        "",
        *HEAD,
        *(line(*piece) for piece in sorted(held.items())),
    ]


def directory_of(model: str) -> Path:
    """Where a model lies."""
    from loquela.checkpoint.house import HOUSE

    return Path(model) if Path(model).is_dir() else HOUSE / model


def prompts_of(model: LanguageModel, held_out: list[str]) -> dict[str, list[list[int]]]:
    """Token ids of both kinds of prompts, such as leave room for the text in the window."""
    ids = [model.tokenizer.encode(story) for story in held_out]
    most = model.context_length - NEW - 12
    fitting = [story for story in ids if 60 <= len(story) <= most][:TEXTS]
    line = model.tokenizer.encode("\n", add_special_tokens=False)
    return {"copy": [[*story, *line, *story[:10]] for story in fitting], "free": [story[:10] for story in fitting]}


def cells(found: dict[str, dict[str, Any]]) -> str:
    """The columns of one line of the table."""
    plain = statistics.median(found["none"]["speed"])
    out = [spread(found["none"]["speed"])]
    for name in ("prompt lookup", "draft"):
        one = found[name]
        out.append(spread(one["speed"]))
        out.append(f"{statistics.median(one['speed']) / plain:.2f}")
        out.append(f"{one['accepted'] / one['drafted']:.0%} of {one['drafted']}" if one["drafted"] else "none tried")
        out.append(f"{one['tokens_per_forward']:.2f}")
    return " | ".join(out)


if __name__ == "__main__":
    main()
