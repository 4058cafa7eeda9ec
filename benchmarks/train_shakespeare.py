"""Training from scratch on tinyshakespeare, characters, context 64: ours, Hugging Face's Trainer, a plain loop.

Ours and the Trainer train the same Qwen3 shape on the same blocks of the same text, on all cores; the plain loop, in
nanoGPT's way, a GPT-2 with as many parameters. Ours uses the recipe `recipes/race/characters.yaml` with the steps that
suit the target (`OURS`) and products in the type that it chooses (`dtype=float32` as an override: float32); the others
compute in float32, their default, by nanoGPT's documented CPU recipe (12 blocks a step, AdamW 1e-3 with cosine to 1e-4
over `--peer-steps`, 100 steps of warm-up, betas 0.9 and 0.99, decay 0.1, clipping at 1, no dropout).

Two more of ours race on the same text and context: `lstm`, a recurrent network of as many parameters
(`characters_lstm.yaml`), and `tables`, a smaller one that learns what the counted n-grams of the text leave open
(`characters_tables.yaml`); the seconds of counting are in its time, its table says what is learnt and what is counted.

Time to loss is the training time (validations taken out) until the loss over the whole validation split, every token,
is at most the target. It is measured where a run validates: ours at its end, the others every 100 steps. Tokens per
second are the median over rounds of alternating bursts of steps.

What is measured is a piece of less than eight minutes, and `--record` puts each beside those that are there:

    python benchmarks/train_shakespeare.py --target 1.75 --who ours|lstm|tables [--seeds 0,1,2] [--record] [key=value …]
    python benchmarks/train_shakespeare.py --target 1.75 --who trainer|plain|bursts [--record]
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loquela.checkpoint.store import load_model, save_model
from loquela.data.batches import BlockOrder
from loquela.data.shards import Corpus, build
from loquela.layers.counts import learnable
from loquela.models.base import architecture, config_from_dict
from loquela.models.ngram_residual import NGramResidual
from loquela.text.tokenizer import Tokenizer
from loquela.training.events import Preparing, Started, Stepped, Validated
from loquela.training.recipe import Recipe
from loquela.training.run import COUNTING, train
from machine import more_rounds, record, spread
from train_throughput import PlainGPT, Shape

RECIPES = Path(__file__).parent.parent / "recipes" / "race"
RECIPE = RECIPES / "characters.yaml"
BATCH, BLOCK, PEER_STEPS = 12, 64, 2000
OURS: dict[str, tuple[str, dict[float, int]]] = {
    "ours": ("characters.yaml", {1.88: 220, 1.75: 540}),
    "lstm": ("characters_lstm.yaml", {1.88: 260, 1.75: 560}),
    "tables": ("characters_tables.yaml", {1.88: 20, 1.75: 20, 1.55: 120}),
}
"""Recipes, and updates after which the rate has come down to nothing: as many as each target needs."""


class Blocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The blocks that ours would draw, as the Trainer takes them (it shifts the labels itself)."""

    def __init__(self, corpus: Corpus, blocks: int, seed: int) -> None:
        self.tokens = np.asarray(corpus.train.tokens)
        order = BlockOrder(len(self.tokens), BLOCK, BATCH, seed)
        self.starts = np.concatenate([order.indices(step) for step in range(-(-blocks // BATCH))])[:blocks]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.tokens[self.starts[index] :][: BLOCK + 1].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def full_loss(logits_of: Any, tokens: np.ndarray[Any, Any]) -> float:
    """Nats per token over every token of the split but the first, in blocks without overlap."""
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))
    total, rows = 0.0, [ids[i : i + BLOCK + 1] for i in range(0, len(ids) - 1, BLOCK)]
    whole = [r for r in rows if len(r) == BLOCK + 1]
    with torch.no_grad():
        for batch in [torch.stack(whole[i : i + 64]) for i in range(0, len(whole), 64)] + [
            r[None] for r in rows[len(whole) :]
        ]:
            logits = logits_of(batch[:, :-1])
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            )
    return total / (len(ids) - 1)


def prepared(directory: Path, raw: dict[str, Any]) -> tuple[Corpus, Path]:
    """Return the tokenised text, and the directory of a fresh model of the shape that both train."""
    from loquela.data.corpora import resolve

    text = resolve("shakespeare")
    from loquela.data.vocabulary import train_tokenizer

    tokenizer: Tokenizer = train_tokenizer(text, "char", None, encoding="utf-8", validation_fraction=0.1)
    corpus = build("shakespeare", tokenizer, directory / "tokens")
    config = config_from_dict({**raw["model"], "vocab_size": tokenizer.vocab_size})
    torch.manual_seed(0)
    network = architecture(config.model_type).NETWORK(config)
    save_model(network, tokenizer, directory / "shape")
    return corpus, directory / "shape"


def ours(directory: Path, who: str, seed: int, steps: int, overrides: list[str], target: float) -> dict[str, Any]:
    """One run of a recipe of ours; the time of its first validation at the target."""
    curve: list[tuple[int, float, float]] = []
    own = [f"output_dir={directory / f'{who}-{seed}'}", f"seed={seed}", f"max_steps={steps}", f"eval_steps={steps}"]
    marks: dict[str, float] = {"spent": 0.0, "before": 0.0}

    def listen(event: Any) -> None:
        now = time.perf_counter()
        if isinstance(event, Preparing) and event.what == COUNTING:
            marks["first"] = now
        elif isinstance(event, Started):
            marks.setdefault("first", now)
        elif isinstance(event, Stepped):
            marks["last"] = now
        elif isinstance(event, Validated):
            marks["spent"] += now - marks["last"]
            curve.append((event.step, event.loss, marks["last"] - marks["first"] - marks["before"]))
            marks["before"] = marks["spent"]

    result = train(Recipe.load(RECIPES / OURS[who][0], [*own, *overrides]), on_event=listen)
    network = load_model(directory / f"{who}-{seed}", dtype="auto").network
    levels = network.ngram.config.counted if isinstance(network, NGramResidual) else []
    return {
        "seconds": next((seconds for _, loss, seconds in curve if loss <= target), None),
        "curve": curve,
        "loss": result.val_loss,
        "tokens": result.tokens,
        "parameters": sum(p.numel() for p in learnable(network).values()),
        "counted": sum(levels),
    }


def trainer(directory: Path, shape: Path, corpus: Corpus, seed: int, target: float, steps: int) -> dict[str, Any]:
    """One run of Hugging Face's Trainer with nanoGPT's CPU recipe; stops at the target."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = fresh_peer(shape, seed)
    clock = {"spent": 0.0}
    curve: list[tuple[int, float, float]] = []

    class Validate(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock["first"] = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % 100 == 0:
                before = time.perf_counter()
                model.eval()
                loss = full_loss(lambda ids: model(input_ids=ids).logits, corpus.validation.tokens)
                model.train()
                curve.append((state.global_step, loss, before - clock["first"] - clock["spent"]))
                clock["spent"] += time.perf_counter() - before
                print(f"  Trainer step {state.global_step}: {loss:.3f}", file=sys.stderr)
                if loss <= target:
                    control.should_training_stop = True

    arguments = trainer_arguments(directory, seed, steps)
    transformers.Trainer(
        model=model, args=arguments, train_dataset=Blocks(corpus, steps * BATCH, seed), callbacks=[Validate()]
    ).train()
    reached = next((seconds for _, loss, seconds in curve if loss <= target), None)
    return {"seconds": reached, "curve": curve, "loss": curve[-1][1], "parameters": model.num_parameters()}


def plain(corpus: Corpus, seed: int, target: float, steps: int) -> dict[str, Any]:
    """One run of a loop in nanoGPT's way, a GPT-2 of as many parameters; stops at the target."""
    torch.manual_seed(seed)
    data = torch.from_numpy(np.asarray(corpus.train.tokens).astype(np.int64))
    model = PlainGPT(Shape(128, 4, 4, int(data.max()) + 1, BATCH, BLOCK, 0))
    groups = [[p for p in model.parameters() if (p.dim() > 1) is big] for big in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.99),
        fused=True,
    )
    curve: list[tuple[int, float, float]] = []
    seconds, began = 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 100) / max(1, steps - 100)))
        for group in optimizer.param_groups:
            group["lr"] = min(1e-3 * step / 100, 1e-4 + 9e-4 * cosine)
        starts = torch.randint(len(data) - BLOCK - 1, (BATCH, 1)) + torch.arange(BLOCK + 1)
        rows = data[starts]
        model(rows[:, :-1], rows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps:
            seconds += time.perf_counter() - began
            loss = full_loss(model.logits, corpus.validation.tokens)
            curve.append((step, loss, seconds))
            print(f"  plain loop, step {step}: {loss:.3f}", file=sys.stderr)
            if loss <= target:
                break
            began = time.perf_counter()
    reached = curve[-1][2] if curve[-1][1] <= target else None
    parameters = sum(p.numel() for p in model.parameters())
    return {"seconds": reached, "curve": curve, "loss": curve[-1][1], "parameters": parameters}


def fresh_peer(shape: Path, seed: int) -> Any:
    import transformers

    transformers.set_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(shape))


def trainer_arguments(directory: Path, seed: int, steps: int) -> Any:
    import transformers

    return transformers.TrainingArguments(
        output_dir=str(directory / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=1e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-4},
        warmup_steps=min(100, steps // 2),
        weight_decay=0.1,
        adam_beta2=0.99,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )


def bursts(
    directory: Path, shape: Path, corpus: Corpus, rounds: int, steps: int, overrides: list[str]
) -> tuple[list[float], list[float]]:
    """Tokens per second of ours and the Trainer at the same shape and batch, in alternating bursts of `steps`."""
    import transformers

    from loquela.data.batch import Sample, collate
    from loquela.training.optimizers import build as build_optimizer
    from loquela.training.precision import dtype_of
    from loquela.training.step import train_step

    recipe = Recipe.load(
        RECIPE, [f"output_dir={directory / 'burst'}", f"per_device_train_batch_size={BATCH}", *overrides]
    )
    network = architecture("qwen3").NETWORK(config_from_dict(json.loads((shape / "config.json").read_text())))
    network.initialise()
    optimizer = build_optimizer(network, recipe)
    dtype, _ = dtype_of(recipe.dtype, torch.device("cpu"), tokens=BATCH * BLOCK, dim=network.dim)
    optimizer.compute_in(dtype)
    order = BlockOrder(len(corpus.train), BLOCK, BATCH, 0)

    def our_steps(count: int) -> float:
        start = time.perf_counter()
        for step in range(count):
            blocks = order.blocks(corpus.train.tokens, order.indices(step))
            batch = collate([Sample(row[:-1], row[1:]) for row in blocks])
            train_step(network, optimizer, batch, step, 0.1, micro_batch=BATCH, dtype=dtype)
        return count * BATCH * BLOCK / (time.perf_counter() - start)

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        start = end = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                self.start = time.perf_counter()
            self.end = time.perf_counter()

    peer = fresh_peer(shape, 0)

    def their_steps(count: int) -> float:
        clock = Clock()
        arguments = trainer_arguments(directory, 0, count + 5)
        transformers.Trainer(
            model=peer, args=arguments, train_dataset=Blocks(corpus, (count + 5) * BATCH, 0), callbacks=[clock]
        ).train()
        return count * BATCH * BLOCK / (clock.end - clock.start)

    our_steps(5), their_steps(5)
    ours_rate, their_rate = [], []
    for _ in range(rounds):
        ours_rate.append(our_steps(steps))
        their_rate.append(their_steps(steps))
    return ours_rate, their_rate


NAMES = {
    "ours": "Loquela, a transformer",
    "lstm": "Loquela, an LSTM",
    "tables": "Loquela, an LSTM beside counted n-grams",
    "trainer": "Hugging Face Trainer",
    "plain": "a plain loop, nanoGPT's way",
}


def table(figures: dict[str, Any], target: float) -> Iterator[str]:
    """The table of all pieces that were measured."""
    runs = {who: figures[who]["rounds"]["runs"] for who in NAMES if who in figures}
    peers = [who for who in ("trainer", "plain") if who in runs]
    if runs:
        faster = "".join(f" faster than {NAMES[peer]} |" for peer in peers)
        yield f"| run | parameters | runs | seconds to the target, median (range) | last validation loss |{faster}"
        yield f"|---|---|---|---|---|{'---|' * len(peers)}"
    for who, made in runs.items():
        times = [r["seconds"] for r in made if r["seconds"] is not None]
        said = spread(times) if times else f"not reached in {made[0]['curve'][-1][2]:.0f} s"
        if 0 < len(times) < len(made):
            said += f", reached by {len(times)} of {len(made)}"
        losses = ", ".join(f"{r['loss']:.4f}" for r in made)
        ratios = "".join(f" {compared(made, runs[peer]) if who in OURS else ''} |" for peer in peers)
        learnt = f"{made[0]['parameters']:,}"
        if made[0].get("counted"):
            learnt += f" learnt, {made[0]['counted']:,} n-grams counted"
        yield f"| {NAMES[who]} | {learnt} | {len(made)} | {said} | {losses} |{ratios}"
    if "bursts" in figures:
        rates = figures["bursts"]["rounds"]
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["trainer"], strict=True))
        yield ""
        yield (
            f"Tokens per second at the same shape, batch {BATCH} x {BLOCK}, {len(rates['ours'])} alternating bursts: "
            f"Loquela {spread(rates['ours'])}, Trainer {spread(rates['trainer'])}, ratio **{ratio:.2f}x**"
        )
    for who, piece in figures.items():
        yield ""
        yield f"{who}: {', '.join(f'{key} {value}' for key, value in piece['given'].items())}."


def compared(ours_runs: list[dict[str, Any]], peers: list[dict[str, Any]]) -> str:
    if any(r["seconds"] is None for r in ours_runs):
        return "not reached"
    mine = statistics.median(r["seconds"] for r in ours_runs)
    theirs = statistics.median(r["curve"][-1][2] if r["seconds"] is None else r["seconds"] for r in peers)
    bound = "" if all(r["seconds"] is not None for r in peers) else "more than "
    return f"**{bound}{theirs / mine:.1f}x**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=1.88, help="validation loss in nats per character")
    parser.add_argument("--who", nargs="+", default=["ours", "trainer"], choices=[*NAMES, "bursts"])
    parser.add_argument("--seeds", default="0", help="a run of each of those that race for each, e.g. 0,1,2")
    parser.add_argument("--peer-steps", type=int, default=PEER_STEPS, help="after which their rate has come down")
    parser.add_argument("--rounds", type=int, default=3, help="bursts of ours and of the Trainer")
    parser.add_argument("--burst", type=int, default=60, help="steps in a burst")
    parser.add_argument("--record", action="store_true", help="write the result into RESULTS.md")
    parser.add_argument("overrides", nargs="*", help="keys of our recipe with other values, before the other flags")
    options = parser.parse_intermixed_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for who in set(options.who) & OURS.keys():
        if options.target not in (known := OURS[who][1]):
            parser.error(f"--target must be one of {', '.join(map(str, known))} for {who}, but is {options.target}")
    title = f"Training from scratch: time to validation loss {options.target}"

    import yaml

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        corpus, shape = prepared(directory, yaml.safe_load(RECIPE.read_text()))
        for who in options.who:
            flags = {"threads": torch.get_num_threads(), "on": time.strftime("%Y-%m-%d")}
            found: dict[str, list[Any]]
            if who == "bursts":
                flags |= {"steps": options.burst, "recipe": " ".join(options.overrides) or "as it is"}
                mine, theirs = bursts(directory, shape, corpus, options.rounds, options.burst, options.overrides)
                found = {"ours": mine, "trainer": theirs}
            elif who in OURS:
                flags |= {"recipe": " ".join(options.overrides) or "as it is"}
                run = functools.partial(ours, directory, who)
                steps, given = OURS[who][1][options.target], options.overrides
                found = {"runs": [run(seed, steps, given, options.target) for seed in seeds]}
            else:
                flags |= {"steps": options.peer_steps}
                peer = functools.partial(trainer, directory, shape) if who == "trainer" else plain
                found = {"runs": [peer(corpus, seed, options.target, options.peer_steps) for seed in seeds]}
            print("\n".join(table({who: {"given": flags, "rounds": found}}, options.target)), flush=True)
            if options.record:
                figures = more_rounds(title, who, flags, found)
                command = "python benchmarks/train_shakespeare.py --target T --who WHO --record"
                record(title, command, [*table(figures, options.target)], figures)


if __name__ == "__main__":
    main()
