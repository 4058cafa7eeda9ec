"""A tuning from its recipe to its result: prepare, tune or go on, judge, save, keep the evidence."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loquela.data import hub
from loquela.data.pairs import Examples
from loquela.errors import DirectoryInUseError, LoquelaError
from loquela.evaluation.forgetting import Forgetting, Stage
from loquela.models.encoder_only import EncoderOnly
from loquela.training.directory import checkpoints, finished_result, locked, remove, write_file
from loquela.training.events import Listener, Note
from loquela.training.interruption import Interruption
from loquela.training.memory import keep_freed_memory
from loquela.tuning.batching import Assembler
from loquela.tuning.evidence import write_evidence
from loquela.tuning.judging import Held, judge, validate
from loquela.tuning.loop import Tuning, optimizer_for
from loquela.tuning.preparing import Prepared, is_tagging, labels_of, prepare, read_tasks
from loquela.tuning.probing import Probes, probes_for
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.subject import Subject, open_subject

__all__ = ["RECIPE", "TuneResult", "seconds_per_step", "tune"]

RESULTS, RECIPE = "tune_results.json", "tune.yaml"


@dataclass(frozen=True)
class TuneResult:
    """What a tuning came to. Losses are in nats per token; `seconds` is all of tuning, its validations included.

    `model` is what to open, with `adapter` on it where there is one; `tokens` counts prompts too, as
    `tokens_per_second` does, but no filling.
    """

    model: str
    adapter: str | None
    method: str
    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None
    val_tokens: int
    tokens: int
    seconds: float
    tokens_per_second: float
    steps: int
    best_step: int
    """The step whose weights were kept; 0: nothing was better than the base."""
    parameters: int
    trainable_parameters: int
    metrics: dict[str, Any]
    forgetting: dict[str, Any]
    verdict: dict[str, Any]
    peak_memory_bytes: int
    adapter_bytes: int
    """Size of what was tuned, as it is on the disk."""
    dtype: str = "float32"
    """What products of updates were computed in; all scores are float32's."""

    @property
    def good(self) -> bool:
        """Better on the held-out rows, and nothing lost beyond the noise."""
        return bool(self.verdict["good"])

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def tune(recipe: TuneRecipe | Mapping[str, Any] | str | Path, *, on_event: Listener = lambda event: None) -> TuneResult:
    """Tune by a recipe, given as such, as a dict or as a YAML file; go on where an earlier call was interrupted.

    The first SIGINT or SIGTERM saves at the step boundary and raises `KeyboardInterrupt`; the second raises it at
    once. Raises `RecipeError`, `DataError`, `ContextWindowError`, `DirectoryInUseError`, `NonFiniteError`,
    `StorageError`, and `UsageError` for a method that makes no sense for the model.
    """
    recipe = recipe if isinstance(recipe, TuneRecipe) else TuneRecipe.load(recipe)
    directory = Path(recipe.output_dir)

    def say(message: str) -> None:
        on_event(Note(message))

    tasks = read_tasks(recipe, say)  # before anything is made for them
    with Interruption() as interruption, locked(directory):
        _claim(directory, recipe)
        if recipe.resume_from_checkpoint and (result := _finished(directory, say)):
            return result
        run = _assembled(recipe, tasks, directory, on_event, lambda: interruption.requested)
        if recipe.resume_from_checkpoint:
            for note in run.resume():
                say(note)
        interruption.patient = True
        if not run.run():
            say(f"interrupted after step {run.progress.step} of {run.steps}; the same command goes on from there")
            raise KeyboardInterrupt
        return _finish(run, say)


def seconds_per_step(recipe: TuneRecipe, steps: int = 4) -> float:
    """Return the processor seconds of an update by this recipe, all threads together; nothing is kept."""
    less = {"probe": [], "probe_tokens": 1, "max_forget": None, "validation_rows": 1}
    recipe = recipe.model_copy(update=less)
    tasks = read_tasks(recipe, lambda message: None)
    run = _assembled(recipe, tasks, Path(recipe.output_dir), lambda event: None, lambda: False)
    run.subject.network.train()
    with run.narrow.held(), run.subject.tuned():
        run.update()  # the first one makes room and starts threads
        began = time.process_time()
        for _ in range(steps):
            run.update()
    return (time.process_time() - began) / steps


def _assembled(
    recipe: TuneRecipe,
    tasks: list[Examples],
    directory: Path,
    on_event: Listener,
    stopping: Callable[[], bool],
) -> Tuning:
    """Open the model, render the rows, score the base: all that comes before the first step."""

    def say(message: str) -> None:
        on_event(Note(message))

    keep_freed_memory()
    subject = open_subject(recipe, labels_of(recipe, tasks), tags=is_tagging(tasks))
    prepared = prepare(recipe, subject, tasks, subject.labels, say)
    scoring = Assembler(subject.network, at_most=recipe.per_device_eval_batch_size, limit=subject.room, packing=False)
    learning = Assembler(
        subject.network,
        at_most=recipe.per_device_train_batch_size,
        limit=recipe.max_seq_length or subject.room,
        packing=recipe.packing and subject.room == subject.network.context_length,  # soft prompts stand before a row
    )
    probes = probes_for(recipe, subject, scoring, prepared.held, say)
    before = _score_base(recipe, subject, prepared, probes, scoring)
    optimizer = optimizer_for(recipe, subject)
    return Tuning(
        recipe, subject, prepared, probes, learning, scoring, optimizer, directory, on_event, stopping, before
    )


def _score_base(recipe: TuneRecipe, subject: Subject, prepared: Prepared, probes: Probes, assembler: Assembler) -> Held:
    """Score the held-out rows and the probes as the base has them."""
    if isinstance(subject.network, EncoderOnly):  # its head is not the base's, so it is scored as it starts
        with subject.tuned():
            before = validate(subject, prepared, assembler, beta=recipe.beta)
    elif subject.is_adapter:
        with subject.untuned():
            before = validate(subject, prepared, assembler, beta=recipe.beta)
    else:
        before = validate(subject, prepared, assembler, beta=recipe.beta)
    probes.score_base()
    assert before is not None
    return before


def _finish(run: Tuning, say: Callable[[str], None]) -> TuneResult:
    recipe, subject, progress, directory = run.recipe, run.subject, run.progress, run.directory
    if progress.ended:
        say(progress.ended)
    if recipe.load_best_model_at_end or recipe.max_forget is not None:
        subject.restore(run.best)
        if progress.best_step == 0:
            say("no step was better than the base on the held-out rows: what was there at the start is kept")
        elif progress.best_step != progress.step:
            say(f"the weights of step {progress.best_step} are kept, the best on the held-out rows")
    kept = progress.best_step if recipe.load_best_model_at_end or recipe.max_forget is not None else progress.step
    with subject.tuned():
        after = validate(subject, run.prepared, run.scoring, beta=recipe.beta)
        nats, tokens = run.probes.score()
        assert after is not None
        forgetting = run.probes.account(nats, [Stage(**stage) for stage in progress.stages])
        forgetting.stages.append(run.probes.stage(kept, nats))
        _compare_states(run, forgetting)
    verdict = judge(run.prepared, run.before, after, forgetting)
    size = sum(p.numel() * p.element_size() for p in subject.parameters.values())
    trained = sum(p.numel() for p in subject.parameters.values())
    metrics: dict[str, Any] = {**after.metrics, "before": run.before.metrics | {"loss": run.before.loss}}
    if len(run.prepared.names) > 1:
        metrics["tasks"] = after.per_task
    result = TuneResult(
        model=str(subject.base if subject.is_adapter else directory),
        adapter=str(directory) if subject.is_adapter else None,
        method=recipe.method,
        train_loss=progress.train_loss,
        val_loss=after.loss,
        val_bits_per_byte=after.bits_per_byte,
        val_tokens=after.tokens,
        tokens=progress.positions,
        seconds=run.seconds,
        tokens_per_second=progress.positions / max(run.seconds, 1e-9),
        steps=progress.step,
        best_step=kept,
        parameters=subject.network.parameter_count(),
        trainable_parameters=trained,
        metrics=metrics,
        forgetting=forgetting.as_dict(),
        verdict=verdict.as_dict(),
        peak_memory_bytes=peak_memory(),
        adapter_bytes=size,
        dtype=str(progress.dtype),
    )
    try:
        write_evidence(directory, run, after, nats, tokens, forgetting, verdict)
    except LoquelaError as error:  # a picture less is no reason to lose the model
        say(str(error))
    results = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n"
    subject.save(directory, chat_template=run.prepared.chat_template, files={RESULTS: results})
    for checkpoint in checkpoints(directory):
        remove(checkpoint)
    return result


def _compare_states(run: Tuning, forgetting: Forgetting) -> None:
    """Say of an encoder how like its hidden states are to the base's."""
    import torch

    if not run.probes.similar:
        return
    after = run.probes.hidden_means()
    if run.subject.is_adapter:
        with run.subject.untuned():
            before = run.probes.hidden_means()
    else:
        with run.subject.untuned() as base:
            network, run.subject.network = run.subject.network, base
            try:
                before = run.probes.hidden_means()
            finally:
                run.subject.network = network
    forgetting.similarity = float(torch.cosine_similarity(before, after).mean())


def peak_memory() -> int:
    """Return the most bytes that this process has held in memory at a time."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says has the memory of the process that started this one in it
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def _claim(directory: Path, recipe: TuneRecipe) -> None:
    """Make the directory that of this recipe and these files, or find that it is so already."""
    file = directory / RECIPE
    digests = {task.data: hub.digest(task.data) for task in recipe.tasks}
    content = recipe.to_yaml() + "".join(f"# {digest}  {name}\n" for name, digest in digests.items())
    others = {p.name for p in directory.iterdir()} - {".lock", RECIPE, f".{RECIPE}.part"}
    if not file.exists() or not others:  # a recipe alone is what a call left that ended before its first step
        foreign = sorted(others)
        if foreign:
            raise DirectoryInUseError(
                f"output_dir {directory} must be empty or hold a run of this recipe, but holds "
                f"{', '.join(foreign[:5])}{' …' if len(foreign) > 5 else ''}; choose another output_dir"
            )
        write_file(file, content)
        return
    if recipe.overwrite_output_dir:
        for checkpoint in checkpoints(directory):
            remove(checkpoint)
        for name in ("loss.csv", RESULTS, "manifest.json"):
            (directory / name).unlink(missing_ok=True)
        write_file(file, content)
        return
    before = file.read_text(encoding="utf-8")
    way_out = "choose another output_dir, or begin anew in this one with --overwrite"
    try:
        differences = TuneRecipe.load(file).differences(recipe)
    except LoquelaError as error:
        raise DirectoryInUseError(
            f"output_dir {directory} holds a run that cannot be read: {error}; {way_out}"
        ) from None
    if differences:
        raise DirectoryInUseError(
            f"output_dir {directory} holds a run of another recipe ({'; '.join(differences)}); {way_out}"
        )
    changed = [name for name, digest in digests.items() if f"# {digest}  {name}" not in before]
    if changed:
        raise DirectoryInUseError(
            f"output_dir {directory} holds a run on other rows: {', '.join(changed)} has changed since; {way_out}"
        )


def _finished(directory: Path, say: Callable[[str], None]) -> TuneResult | None:
    """Return the result of a run that has ended."""
    return finished_result(directory, RESULTS, lambda raw: TuneResult(**raw), say, what="run", verb="tune")
