"""lm-evaluation-harness, both ways: our models as models of its, and our tasks as tasks of its.

```python
import lm_eval, loquela
from loquela.evaluation.harness import language_model

lm_eval.simple_evaluate(model=language_model(loquela.load("DIR")), tasks=["arc_easy"])
```

Its own `local-completions` talks to `loquela serve` without anything from here. It needs the package lm-eval, which is
imported only when called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from loquela.errors import ContextWindowError, MissingExtraError, UsageError
from loquela.evaluation.items import item
from loquela.evaluation.local import LocalSubject, Opened
from loquela.evaluation.plan import Prompter, Settings
from loquela.evaluation.rows import sample
from loquela.evaluation.run import Prepared
from loquela.evaluation.subject import Question, Subject
from loquela.evaluation.task import Task

__all__ = ["harness_task", "language_model"]


def language_model(model: Opened | LocalSubject, *, progress: Callable[[int, int], None] | None = None) -> Any:
    """Return a model as lm-eval's `LM`: log-likelihoods, rolling log-likelihoods, greedy generation.

    How many are computed together is not lm-eval's batch size, and changes nothing. `progress` is told (done, in
    all).
    """
    subject = model if isinstance(model, LocalSubject) else LocalSubject(model)
    return _class()(subject, progress)


def harness_task(prepared: Prepared, subject: Subject, settings: Settings = Settings()) -> Any:  # noqa: B008
    """Return a task of ours as lm-eval's `ConfigurableTask`, with the very prompts that `evaluate` would ask.

    Raises `UsageError` for a kind of task that lm-eval asks in another way.
    """
    lm_eval_task = _import("lm_eval.api.task")
    return lm_eval_task.ConfigurableTask(config=_config(prepared.task, list(_documents(prepared, subject, settings))))


def _documents(prepared: Prepared, subject: Subject, settings: Settings) -> Iterator[dict[str, Any]]:
    task = prepared.task
    if isinstance(task.prompt, list):
        raise UsageError(f"task {task.name} compares contexts, which has no counterpart in lm-eval: use evaluate")
    _kinds(task)
    prompter = Prompter(task, prepared.pool, subject, settings, subject.embed)
    for number in sample(prepared.rows, settings.limit):
        asked = item(task, prepared.rows[number], number)
        (prompt,) = prompter(asked)
        target = asked.references[0] if asked.references else ""
        if task.kind == "next_word":  # lm-eval puts its delimiter between question and answer for the other kinds only
            target = task.delimiter + target
        yield {"context": prompt.text, "choices": list(asked.choices), "gold": asked.gold, "target": target}


def _config(task: Task, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What lm-eval's YAML would say."""
    datasets = _import("datasets")
    return {
        "task": task.name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(documents))},
        "test_split": "test",
        "doc_to_text": "context",
        "target_delimiter": task.delimiter,
        **_kinds(task),
    }


def _kinds(task: Task) -> dict[str, Any]:
    """What differs from kind to kind; raises `UsageError` for one that lm-eval lacks."""
    until = {"until": list(task.stop), "max_gen_toks": task.max_new_tokens, "do_sample": False}
    kinds: dict[str, dict[str, Any]] = {
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
        },
        "next_word": {
            "output_type": "loglikelihood",
            "doc_to_target": "target",
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        },
        "generate": {
            "output_type": "generate_until",
            "doc_to_target": "target",
            "generation_kwargs": until,
            "metric_list": [{"metric": name} for name in task.metrics if name in ("bleu", "chrf")],
        },
    }
    if task.kind not in kinds:
        raise UsageError(f"a task of kind {task.kind} has no counterpart in lm-eval: use evaluate")
    return kinds[task.kind]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"lm-evaluation-harness must be installed for this, but {error}: pip install 'lm-eval[hf]'"
        ) from None


@cache
def _class() -> Any:
    base: Any = _import("lm_eval.api.model").LM
    utils: Any = _import("lm_eval.utils")

    class LoquelaLM(base):  # type: ignore[misc]
        """One of our models, seen as lm-eval sees models."""

        def __init__(self, subject: LocalSubject, progress: Callable[[int, int], None] | None) -> None:
            super().__init__()
            self.subject, self.progress = subject, progress

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = []
            grouped = groupby((request.args for request in requests), key=lambda args: args[0])
            questions = (Question(context, tuple(text for _, text in group)) for context, group in grouped)
            for answer in self.subject.several(questions):
                if isinstance(answer, ContextWindowError):
                    raise answer
                found += [(one.log_prob, one.greedy) for one in answer]
                if self.progress is not None:
                    self.progress(len(found), len(requests))
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            """Score whole texts in windows that do not overlap, as lm-eval cuts them."""
            tokenizer = self.subject.tokenizer
            start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
            if start is None:
                raise UsageError("a text has no token to begin from: this tokenizer has neither BOS nor EOS")
            found = []
            for request in requests:
                windows = utils.get_rolling_token_windows(
                    token_list=tokenizer.encode(request.args[0]),
                    prefix_token=start,
                    max_seq_len=self.subject.window,
                    context_len=1,
                )
                pairs = map(utils.make_disjoint_window, windows)
                found.append(sum(self.subject.of_ids(context, ids).log_prob for context, ids in pairs))
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            found = []
            for request in requests:
                prompt, settings = request.args
                if settings.get("do_sample") and settings.get("temperature", 0) > 0:
                    raise UsageError("evaluation decodes greedily, so do_sample must be false, but is true")
                until = settings.get("until") or []
                stop = [until] if isinstance(until, str) else list(until)
                length = int(settings.get("max_gen_toks", 256))
                found.append(self.subject.complete(prompt, max_new_tokens=length, stop=stop))
            return found

    return LoquelaLM
