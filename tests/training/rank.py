"""One of several processes that train together, as a launcher would start it: `python rank.py RECIPE.json …`.

Each recipe is trained after the other. `signal_at` in a recipe makes rank 1, and it alone, get a SIGTERM in that step.
After each, `captured N` says of how many operations torch's compiler has made graphs in it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from loquela.training import loop
from loquela.training.run import train

torch.set_num_threads(1)


def signalled(step: int) -> None:
    real = loop.train_step

    def watched(*arguments: Any, **keywords: Any) -> Any:
        if arguments[3] == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **keywords)

    loop.train_step = watched


def captured() -> int:
    """Operations that stand in graphs of torch's compiler by now."""
    if "torch._dynamo" not in sys.modules:
        return 0
    counters = sys.modules["torch._dynamo.utils"].counters
    return int(counters["stats"]["calls_captured"])


def main() -> None:
    first_port = int(os.environ["MASTER_PORT"])
    for index, file in enumerate(sys.argv[1:]):
        os.environ["MASTER_PORT"] = str(first_port + index)
        recipe = json.loads(Path(file).read_text())
        if (step := recipe.pop("signal_at", None)) is not None and os.environ["RANK"] == "1":
            signalled(step)
        before = captured()
        try:
            print(json.dumps(train(recipe).as_dict()), flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(f"captured {captured() - before}", flush=True)


if __name__ == "__main__":
    main()
