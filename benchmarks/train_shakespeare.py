"""Training from scratch on tinyshakespeare, characters, context 64: ours beside Hugging Face's Trainer, in one run.

Both train the same Qwen3 shape on the same blocks of the same text, on all cores, in float32. Ours uses the recipe
`recipes/race/characters.yaml`; the Trainer uses nanoGPT's documented CPU recipe (2,000 steps of 12 blocks, AdamW 1e-3
with cosine to 1e-4, 100 steps of warm-up, betas 0.9 and 0.99, no dropout).

Time to loss is the training time (validations taken out) until the loss over the whole validation split, every token,
is at most the target. It is measured where the run validates: every 20 steps of ours near its end, every 100 of the
Trainer's. Tokens per second are the median over rounds of alternating bursts of steps.
"""

from __future__ import annotations

import argparse
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

from loquela.checkpoint.store import save_model
from loquela.data.batches import BlockOrder
from loquela.data.shards import Corpus, build
from loquela.models.base import architecture, config_from_dict
from loquela.text.tokenizer import Tokenizer
from loquela.training.recipe import Recipe
from loquela.training.run import train
from machine import record, spread

RECIPE = Path(__file__).parent.parent / "recipes" / "race" / "characters.yaml"
BATCH, BLOCK, TRAINER_STEPS = 12, 64, 2000


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


def ours(directory: Path, seed: int, target: float, overrides: list[str]) -> dict[str, Any]:
    """One run of our recipe; the time of its first validation at the target."""
    events: list[Any] = []
    recipe = Recipe.load(RECIPE, [f"output_dir={directory / f'ours-{seed}'}", f"seed={seed}", *overrides])
    marks: dict[str, float] = {"spent": 0.0}

    def listen(event: Any) -> None:
        name = type(event).__name__
        now = time.perf_counter()
        if name == "Stepped":
            marks["last"] = now
            events.append(("step", now))
        elif name == "Validated":
            marks["spent"] += now - marks["last"]
            events.append(("loss", event.loss, marks["last"] - marks["first"] - marks["before"], event.step))
            marks["before"] = marks["spent"]
        elif name == "Started":
            marks.update(first=now, last=now, before=0.0)

    result = train(recipe, on_event=listen)
    curve = [(e[3], e[1], e[2]) for e in events if e[0] == "loss"]
    reached = next((seconds for _, loss, seconds in curve if loss <= target), None)
    tokens = result.tokens
    return {
        "seconds": reached,
        "curve": curve,
        "loss": result.val_loss,
        "tokens": tokens,
        "parameters": result.parameters,
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


def bursts(directory: Path, shape: Path, corpus: Corpus, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Tokens per second of both at the same shape and batch, in alternating bursts of `steps`."""
    import transformers

    from loquela.data.batch import Sample, collate
    from loquela.training.optimizers import build as build_optimizer
    from loquela.training.step import train_step

    recipe = Recipe.load(RECIPE, [f"output_dir={directory / 'burst'}", f"per_device_train_batch_size={BATCH}"])
    network = architecture("qwen3").NETWORK(config_from_dict(json.loads((shape / "config.json").read_text())))
    network.initialise()
    optimizer = build_optimizer(network, recipe)
    order = BlockOrder(len(corpus.train), BLOCK, BATCH, 0)

    def our_steps(count: int) -> float:
        start = time.perf_counter()
        for step in range(count):
            blocks = order.blocks(corpus.train.tokens, order.indices(step))
            batch = collate([Sample(row[:-1], row[1:]) for row in blocks])
            train_step(network, optimizer, batch, step, 0.1, micro_batch=BATCH)
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


def summary(ours_runs: list[dict[str, Any]], peer_runs: list[dict[str, Any]], target: float) -> Iterator[str]:
    yield "| run | parameters | seconds to the target, median (range) | last validation loss |"
    yield "|---|---|---|---|"
    for name, runs in (("Loquela", ours_runs), ("Hugging Face Trainer", peer_runs)):
        times = [r["seconds"] for r in runs if r["seconds"] is not None]
        said = spread(times) if times else f"not reached in {runs[0]['curve'][-1][2]:.0f} s"
        if 0 < len(times) < len(runs):
            said += f", reached by {len(times)} of {len(runs)}"
        losses = ", ".join(f"{r['loss']:.4f}" for r in runs)
        yield f"| {name} | {runs[0]['parameters']:,} | {said} | {losses} |"
    mine = [r["seconds"] if r["seconds"] is not None else math.inf for r in ours_runs]
    theirs = [r["seconds"] if r["seconds"] is not None else r["curve"][-1][2] for r in peer_runs]
    bound = "" if all(r["seconds"] is not None for r in peer_runs) else "more than "
    yield ""
    ratio = statistics.median(theirs) / statistics.median(mine)
    yield f"Ratio of the medians, time to {target}: **{bound}{ratio:.1f}x**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=1.88, help="validation loss in nats per character")
    parser.add_argument("--rounds", type=int, default=3, help="runs of ours, and bursts of both")
    parser.add_argument("--peer-rounds", type=int, default=1, help="runs of the Trainer, a few minutes each")
    parser.add_argument("--peer-steps", type=int, default=TRAINER_STEPS)
    parser.add_argument("--burst", type=int, default=60, help="steps in a burst")
    parser.add_argument("overrides", nargs="*", help="keys of our recipe with other values")
    options = parser.parse_args()

    import yaml

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        corpus, shape = prepared(directory, yaml.safe_load(RECIPE.read_text()))
        our_rates, their_rates = bursts(directory, shape, corpus, options.rounds, options.burst)
        our_runs, peer_runs = [], []
        for seed in range(max(options.rounds, options.peer_rounds)):
            if seed < options.rounds:
                our_runs.append(ours(directory, seed, options.target, options.overrides))
                print(f"ours, seed {seed}: {our_runs[-1]['loss']:.4f}, {our_runs[-1]['seconds']} s", file=sys.stderr)
            if seed < options.peer_rounds:
                peer_runs.append(trainer(directory, shape, corpus, seed, options.target, options.peer_steps))
    ratio = statistics.median(our_rates) / statistics.median(their_rates)
    lines = [
        *summary(our_runs, peer_runs, options.target),
        "",
        f"Tokens per second at the same shape, batch {BATCH} x {BLOCK}, {options.rounds} alternating bursts of "
        f"{options.burst} steps: Loquela {spread(our_rates)}, Trainer {spread(their_rates)}, ratio **{ratio:.2f}x**",
    ]
    print("\n".join(lines))
    figures = {"ours": our_runs, "trainer": peer_runs, "our_rates": our_rates, "trainer_rates": their_rates}
    record(
        f"Training from scratch: time to validation loss {options.target}",
        "python benchmarks/train_shakespeare.py",
        lines,
        figures,
    )


if __name__ == "__main__":
    main()
