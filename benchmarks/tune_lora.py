"""LoRA on a LLaMA shape of 110 million parameters: ours beside peft with Hugging Face's Trainer, in one run.

Both tune the same random weights (dim 768, 12 layers, hidden 2048, vocabulary 32,000) on the same samples, the same
token ids with the same labels in the same order, prompts masked. Ours computes as a tuning does by default (`dtype:
auto`: bfloat16 where the processor has instructions for it) and, as `ours, float32`, in float32; the Trainer as it
does by default, in float32, and with bf16=True. Workloads:

- real: an instruction set, prompts masked, samples of up to 512 tokens, 8 to an update. The Trainer pads each batch to
  its longest sample (`DataCollatorForSeq2Seq`, its best setting here). Figure: tokens of content per second.
- sorted: the same, where the Trainer sorts samples by length (`group_by_length`); ours needs no sorting.
- fixed: 4 x 256 tokens, all learnt, every linear layer tuned: peak memory, tokens per second.

Each contestant runs in a process of its own; rounds alternate. The first update of each process is not timed. A
workload and a round are a piece of less than four minutes; with `--record` its figures go to those of earlier rounds
with the same flags:

    python benchmarks/tune_lora.py --workloads fixed --rounds 1 --steps 4 --record     # as often as rounds are wanted
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from machine import more_rounds, record, spread

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 1024,
}
RANK, ALPHA, BATCH, LIMIT = 16, 32, 8, 512
CONTESTANTS = {
    "real": ("ours", "ours, float32", "peft", "peft, bf16"),
    "sorted": ("ours", "peft, by length", "peft, by length, bf16"),
    "fixed": ("ours", "ours, float32", "peft", "peft, bf16"),
}
TITLE = "LoRA beside peft"


def prepare(directory: Path, data: Path, tokenizer_file: Path) -> None:
    """Write the model and the samples that all contestants share."""
    from loquela.checkpoint.store import save_model
    from loquela.data.pairs import read_examples
    from loquela.models.base import architecture, config_from_dict
    from loquela.text.tokenizer import Tokenizer
    from loquela.tuning.rendering import Renderer
    from loquela.tuning.templates import templates_for

    torch.manual_seed(0)
    config = config_from_dict(SHAPE)
    network = architecture("llama").NETWORK(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
    tokenizer = Tokenizer.load(tokenizer_file)
    save_model(network, tokenizer, directory / "model")
    examples = read_examples(data)
    templates = templates_for(examples, None, tokenizer, bare=False)
    items = Renderer(network, tokenizer, templates, LIMIT, "drop").items(examples)
    order = np.random.default_rng(0).permutation(len(items))
    rows = [[items[i].sample.inputs.tolist(), items[i].sample.labels.tolist()] for i in order]
    (directory / "real.json").write_text(json.dumps(rows))
    random = np.random.default_rng(1)
    blocks = [random.integers(3, 32000, 257).tolist() for _ in range(64)]
    (directory / "fixed.json").write_text(json.dumps([[b[:-1], b[1:]] for b in blocks]))


def targets(workload: str) -> Any:
    return "all-linear" if workload == "fixed" else ["q_proj", "v_proj"]


def samples_of(directory: Path, workload: str) -> tuple[list[Any], int]:
    """The samples of a workload, and how many of them make an update."""
    fixed = workload == "fixed"
    return json.loads((directory / f"{'fixed' if fixed else 'real'}.json").read_text()), 4 if fixed else BATCH


def ours(directory: Path, workload: str, steps: int, dtype: str) -> dict[str, float]:
    from loquela.data.batch import Sample
    from loquela.training.memory import keep_freed_memory
    from loquela.training.step import train_step
    from loquela.tuning.batching import Assembler
    from loquela.tuning.loop import optimizer_for
    from loquela.tuning.narrow import Narrow, products
    from loquela.tuning.recipe import TuneRecipe
    from loquela.tuning.run import peak_memory
    from loquela.tuning.subject import open_subject

    keep_freed_memory()
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets(workload)}
    raw = {"model": str(directory / "model"), "data": "none", "output_dir": "none", "method": "lora", "dtype": dtype}
    recipe = TuneRecipe.load(raw | {"settings": settings, "learning_rate": 2e-4})
    subject = open_subject(recipe, ())
    network, parameters, optimizer = subject.network, subject.parameters, optimizer_for(recipe, subject)
    pairs, batch = samples_of(directory, workload)
    rows = [Sample(np.array(i), np.array(y)) for i, y in pairs]
    assembler = Assembler(network, at_most=batch, limit=LIMIT, packing=True)
    product, notes = products(dtype, network, tokens=assembler.plenty)
    print(*notes, sep="\n", file=sys.stderr)
    network.train()
    losses = []
    with Narrow(subject, product).held(), subject.tuned():
        for step in range(steps + 1):
            if step == 1:
                began, content = time.perf_counter(), 0
            samples = [rows[(step * batch + i) % len(rows)] for i in range(batch)]
            batches = assembler.packed(samples)
            report = train_step(
                network,
                optimizer,
                batches,
                step,
                1.0,
                micro_batch=batch,
                max_grad_norm=1.0,
                dtype=product,
                parameters=parameters.values(),
            )
            assert report is not None
            losses.append(report.loss)
            content = sum(len(s.inputs) for s in samples) + (content if step > 1 else 0)
        seconds = time.perf_counter() - began
    return {"tokens_per_second": content / seconds, "peak_memory_bytes": peak_memory(), "first_loss": losses[0]}


class Rows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """The samples, as the Trainer takes them: it shifts labels itself."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        inputs, labels = self.rows[index]
        return {"input_ids": [*inputs, labels[-1]], "labels": [-100, *labels], "length": len(inputs) + 1}  # type: ignore[dict-item]


def theirs(directory: Path, workload: str, steps: int, *, bf16: bool) -> dict[str, float]:
    import transformers
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    from loquela.tuning.run import peak_memory
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets(workload), task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    rows, batch = samples_of(directory, workload)
    if workload == "sorted":  # the Trainer's own sorting draws mega-batches; here they are the same for every round
        order = np.random.default_rng(0).permutation(len(rows))
        mega = 50 * batch
        chunks = [sorted(order[i : i + mega], key=lambda j: -len(rows[j][0])) for i in range(0, len(rows), mega)]
        batches = [chunk[i : i + batch] for chunk in chunks for i in range(0, len(chunk), batch)]
        picked = np.random.default_rng(1).permutation(len(batches))
        rows = [rows[j] for b in picked for j in batches[b]]

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended = time.perf_counter()
            if state.global_step == 1:
                self.began = self.ended

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(directory / "model" / "tokenizer.json"))
    tokenizer.pad_token = "</s>"
    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(directory / "trainer"),
        per_device_train_batch_size=batch,
        max_steps=steps + 1,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=bf16,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Rows(rows),
        data_collator=lambda found: collator([{k: v for k, v in row.items() if k != "length"} for row in found]),
        callbacks=[clock],
    )
    trainer.train()
    content = sum(len(rows[i % len(rows)][0]) for i in range(batch, (steps + 1) * batch))
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {
        "tokens_per_second": content / (clock.ended - clock.began),
        "peak_memory_bytes": peak_memory(),
        "first_loss": first,
    }


def contest(directory: Path, workload: str, name: str, steps: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--leg", name, "--workload", workload, "--steps", str(steps)]
    command += ["--directory", str(directory), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).parent.parent.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared / "instruct" / "alpaca_gpt4_999.json")
    parser.add_argument(
        "--tokenizer", type=Path, default=shared / "models" / "tokenizers" / "mistral_v1_tokenizer.model"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--workloads", default="real,sorted,fixed")
    parser.add_argument("--record", action="store_true", help="write into RESULTS.md")
    parser.add_argument("--leg", help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.leg:
        if given.leg.startswith("ours"):
            dtype = "float32" if given.leg.endswith("float32") else "auto"
            found = ours(given.directory, given.workload, given.steps, dtype)
        else:
            found = theirs(given.directory, given.workload, given.steps, bf16=given.leg.endswith("bf16"))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), given.data, given.tokenizer)
        for workload in given.workloads.split(","):
            names = CONTESTANTS[workload]
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for number in range(given.rounds):
                for name in names[:: -1 if number % 2 else 1]:
                    rounds[name].append(contest(Path(temporary), workload, name, given.steps, given.threads))
                    print(workload, name, rounds[name][-1], file=sys.stderr, flush=True)
            flags = {"steps": given.steps, "threads": given.threads, "data": given.data.name}
            figures = {workload: {"given": flags, "rounds": rounds}}
            print("\n".join(table(figures)))
            if given.record:
                figures = more_rounds(TITLE, workload, flags, rounds)
                command = "python benchmarks/tune_lora.py --workloads WORKLOAD --rounds 1 --steps STEPS --record"
                record(TITLE, command, table(figures), figures)


def table(figures: dict[str, Any]) -> list[str]:
    """The table of all workloads that were measured."""
    lines = ["| workload | contestant | content tokens/s | peak memory, MiB | ratio |", "|---|---|---|---|---|"]
    for workload, piece in figures.items():
        speed = {n: [f["tokens_per_second"] for f in legs] for n, legs in piece["rounds"].items()}
        memory = {n: statistics.median(f["peak_memory_bytes"] for f in legs) for n, legs in piece["rounds"].items()}
        for name in speed:
            if len(speed[name]) != len(speed["ours"]):
                continue  # of an earlier set of contestants
            ratio = statistics.median(a / b for a, b in zip(speed["ours"], speed[name], strict=True))
            share = memory["ours"] / memory[name]
            said = "" if name == "ours" else f"ours {ratio:.2f}x the speed, {share:.2f}x the memory"
            lines.append(f"| {workload} | {name} | {spread(speed[name])} | {memory[name] / 2**20:,.0f} | {said} |")
    for workload, piece in figures.items():
        flags = ", ".join(f"{key} {value}" for key, value in piece["given"].items())
        lines += ["", f"{workload}: {len(piece['rounds']['ours'])} alternating rounds; {flags}."]
    return lines


if __name__ == "__main__":
    main()
