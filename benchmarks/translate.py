"""BLEU of a translation model that Loquela trained, by beam search, on Multi30k's validation set (1,014 sentences).

No training run of this project reads that set: `recipes/translate.yaml` trains on the training pairs only, and holds
some of those out for its own validations. BLEU is sacrebleu's, on plain text, with its signature.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import sacrebleu
import torch
from safetensors.torch import load_file

from loquela.api import LanguageModel, load
from loquela.data.batch import Sample, collate
from loquela.generation.beam import beam_search
from loquela.generation.settings import GenerationSettings

SHARED = Path(os.environ.get("LOQUELA_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def translate(model: LanguageModel, sources: list[str], settings: GenerationSettings, batch_size: int) -> list[str]:
    """Translate all sources, those of like lengths together."""
    tokenizer, special = model.tokenizer, model.tokenizer.pad_id or 0
    rows = [np.array(tokenizer.encode(source), dtype=np.int64) for source in sources]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers = [""] * len(rows)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = collate([Sample(rows[i], rows[i]) for i in chosen], pad=special, looks_ahead=True)
        found = beam_search(model.network, batch.inputs, settings, end_ids=model.end_ids, padding=batch.padding)
        for i, hypotheses in zip(chosen, found, strict=True):
            answers[i] = tokenizer.decode(hypotheses[0].ids).strip()
        print(f"{min(first + batch_size, len(order)):,} of {len(order):,} translated", file=sys.stderr)
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--source", type=Path, default=SHARED / "translation" / "multi30k_val.en.gz")
    parser.add_argument("--target", type=Path, default=SHARED / "translation" / "multi30k_val.fr.gz")
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--length-penalty", type=float, default=0.6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=int, default=None, help="so many sentences only")
    given = parser.parse_args()
    model = load(given.model)
    if (average := given.model / "average.safetensors").exists():  # a checkpoint of a run that keeps a mean
        means = load_file(average)
        with torch.no_grad():
            for name, parameter in model.network.named_parameters():
                parameter.copy_(means[name])
    settings = GenerationSettings(max_new_tokens=60, num_beams=given.num_beams, length_penalty=given.length_penalty)
    start = time.perf_counter()
    answers = translate(model, lines(given.source)[: given.limit], settings, given.batch_size)
    seconds = time.perf_counter() - start
    references = lines(given.target)[: given.limit]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    scores = {
        "bleu": bleu.corpus_score(answers, [references]).score,
        "signature": str(bleu.get_signature()),
        "chrf": chrf.corpus_score(answers, [references]).score,
        "sentences": len(answers),
        "seconds": seconds,
        "examples": list(zip(lines(given.source)[:3], answers[:3], references[:3], strict=True)),
    }
    print(json.dumps(scores, ensure_ascii=False, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
