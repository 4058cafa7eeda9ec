"""The recipe of a training run: YAML, or a dict, checked to the last key before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loquela.data.built import RECORD, is_built
from loquela.data.corpora import resolve
from loquela.data.objectives import OBJECTIVES
from loquela.errors import RecipeError
from loquela.text.tokenizer import KINDS
from loquela.training.recipe_file import dump, leaves, one_of, override, read, unknown
from loquela.training.schedules import SCHEDULES

__all__ = ["Curriculum", "Muon", "PairFiles", "Recipe", "Tokenizer", "Weighted"]

Count = Annotated[int, Field(ge=1, le=2**31)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

FREE = frozenset(
    """output_dir overwrite_output_dir resume_from_checkpoint save_steps save_total_limit logging_steps sample_steps
    sample_prompt report_to device parallel gradient_checkpointing""".split()
)
"""Keys that change nothing in the weights (the last three: but for rounding): a run may go on with other values."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Tokenizer(_Strict):
    """A tokenizer to train on the text of the run."""

    kind: str = Field(default="bpe", description=f"One of {', '.join(KINDS)}.")
    vocab_size: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        default=None, description="Pieces, special ones too."
    )


class PairFiles(_Strict):
    """Sources and their targets: two files, a text per line in both, or two fields of the rows of one."""

    source: str = Field(description="A file of texts, one per line; with rows, the field of a source.")
    target: str = Field(description="The same of the targets.")
    rows: str | None = Field(default=None, description="A file of rows: .jsonl, .json, .csv, .tsv, .parquet.")

    @property
    def files(self) -> list[str]:
        """The files to read."""
        return [self.source, self.target] if self.rows is None else [self.rows]


class Weighted(_Strict):
    """One of several texts, and how often its samples come beside those of the others."""

    data: str = Field(description="A text file, a name of a corpus, or a directory of `loquela data build`.")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class Muon(_Strict):
    """Settings of Muon, which trains the matrices inside the blocks; see `loquela.training.optimizers`."""

    learning_rate: Size = Field(default=0.05, description="Size of a step, before √max(1, rows / columns).")
    momentum: Fraction = Field(default=0.88, description="Share of the past in the running mean of gradients.")
    momentum_start: Fraction = Field(default=0.85, description="The momentum of the first step.")
    momentum_warmup_steps: int = Field(default=100, ge=0, description="Steps until the momentum is reached.")
    ns_steps: int = Field(default=4, ge=1, le=5, description="Iterations that make the update orthogonal.")


class Curriculum(_Strict):
    """Short samples first: as many more of them in an update as are shorter, so that its tokens stay as many."""

    block_size: Count = Field(description="Tokens of a sample at first; divides the block_size that comes after.")
    ratio: Fraction = Field(default=0.6, description="Share of the steps that see such samples.")


class Recipe(_Strict):
    """All that decides a run. Names are those of Hugging Face's Trainer wherever it has one."""

    model: dict[str, Any] | str = Field(
        description="A config.json to start afresh (vocab_size is the tokenizer's), or the directory of a model."
    )
    init: Literal["default", "neighbours"] = Field(
        default="default",
        description="How a fresh model starts; neighbours, of an encoder: its first layers look at the tokens beside, "
        "which gained in two of five shapes and changed nothing in three (docs/training.md).",
    )
    tokenizer: Tokenizer | str | None = Field(
        default=None,
        description="What to train, or a directory; none: a BPE of 1024 pieces, or the starting model's own.",
    )
    data: str | PairFiles | Annotated[list[Weighted], Field(min_length=1)] = Field(
        description="A text file, the name of a corpus in the package, or a directory of `loquela data build`; several "
        "of them with weights; for the objective pairs, sources and targets."
    )
    encoding: str = Field(default="utf-8", description="How the bytes of the file are text.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="Held out from the end.")
    objective: str = Field(default="causal", description=f"One of {', '.join(OBJECTIVES)}.")
    objective_options: dict[str, Any] = Field(default={}, description="How the objective chooses; see docs/data.md.")
    attend_across_documents: bool = Field(
        default=True, description="Whether a token sees the document before its own in the same sample."
    )
    block_size: Count = Field(default=128, description="Tokens of one sample; the context window that is trained.")

    curriculum: Curriculum | None = Field(default=None, description="Shorter samples for the first steps.")

    output_dir: str = Field(description="Where the run lives: model, checkpoints, logs, tokens.")
    overwrite_output_dir: bool = Field(default=False, description="Begin anew in a directory that holds another run.")
    resume_from_checkpoint: bool | str = Field(
        default=True, description="true: the newest intact checkpoint; a directory: that one; false: begin anew."
    )

    per_device_train_batch_size: Count = Field(default=8, description="Samples computed at once.")
    per_device_eval_batch_size: Count = Field(default=32, description="Samples computed at once when validating.")
    gradient_accumulation_steps: Count = Field(default=1, description="Such batches in one update.")
    num_train_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0, description="Passes over the text; max_steps wins where both are given."
    )
    max_steps: Count | None = Field(default=None, description="Updates in all.")

    optim: Literal["adamw_torch_fused", "muon"] = Field(
        default="muon", description="muon: Muon for the matrices of the blocks, AdamW for the rest; or AdamW for all."
    )
    learning_rate: Size = Field(default=1e-3, description="AdamW's.")
    muon: Muon = Field(default=Muon(), description="Muon's own settings.")
    weight_decay: Size = Field(default=0.0, description="Decoupled, of matrices only.")
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-10
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Clip the gradient; none: never."
    )
    lr_scheduler_type: str = Field(default="linear", description=f"One of {', '.join(SCHEDULES)}.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps of a rising rate; wins over warmup_ratio."
    )
    warmup_ratio: Fraction = Field(default=0.0, description="The same as a share of all steps.")
    min_lr_rate: Fraction = Field(default=0.0, description="The share of the rate that the schedule comes down to.")
    label_smoothing_factor: Fraction = Field(
        default=0.0, description="Share of the target spread over the whole vocabulary."
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Keep a running mean of the weights, which is what is validated, sampled and saved in the end.",
    )

    logging_steps: Count = Field(default=10, description="Rows of loss.csv: the mean loss of so many steps.")
    eval_steps: Count | None = Field(
        default=None, description="Validate every so many steps; the end is always validated."
    )
    save_steps: Count = Field(default=500, description="A checkpoint every so many steps, and one at the end.")
    save_total_limit: Count | None = Field(
        default=2, description="Checkpoints kept; two let a damaged one be passed over."
    )
    load_best_model_at_end: bool = Field(
        default=False, description="Keep the weights of the best validation, not the last."
    )
    early_stopping_patience: Count | None = Field(
        default=None, description="End after so many validations that were no better than the best."
    )
    spike_policy: Literal["none", "log", "skip", "rewind"] = Field(
        default="none",
        description="What to do when a loss leaps: say it, leave that update out, or go back to the last checkpoint "
        "and pass over the samples since.",
    )
    spike_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=6.0, description="A leap is so many standard deviations above the running mean of the loss."
    )
    sample_steps: Count | None = Field(default=None, description="Let the model write every so many steps.")
    sample_prompt: str | None = Field(
        default=None, description="What it goes on from; none: the start of the held-out text."
    )
    report_to: Literal["none", "tensorboard", "wandb", "mlflow"] = Field(
        default="none", description="A further place to log to; loss.csv and report.html are always written."
    )

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Decides everything that is random.")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="auto",
        description="What products are computed in where the hardware is fast at it, else float32; auto: bfloat16 if "
        "so and they are large enough to gain. Weights and optimizer stay float32.",
    )
    device: str = Field(default="auto", description="cpu, cuda, or auto: a GPU where there is one.")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="Several processes: each has the whole model (ddp), or a share of it (fsdp)."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute each layer again in the backward pass instead of keeping it: less memory."
    )
    torch_compile: bool = Field(default=False, description="Compile each layer first; pays for long runs.")

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        for key, known in (("objective", OBJECTIVES), ("lr_scheduler_type", SCHEDULES)):
            one_of(key, getattr(self, key), known)
        OBJECTIVES[self.objective].options(self.objective_options)
        if OBJECTIVES[self.objective].takes_pairs != isinstance(self.data, PairFiles):
            wanted = "source: and target:" if OBJECTIVES[self.objective].takes_pairs else "a text"
            raise RecipeError(f"data must be {wanted} for the objective {self.objective}, but is {self.data!r}")
        if isinstance(self.model, str) and self.init != "default":
            raise RecipeError(f"init must not be given for a model that is there already, but is {self.init!r}")
        if isinstance(self.tokenizer, Tokenizer):
            one_of("tokenizer.kind", self.tokenizer.kind, KINDS)
        if self.curriculum is not None and self.block_size % self.curriculum.block_size:
            raise RecipeError(
                f"curriculum.block_size must divide block_size, but is {self.curriculum.block_size} and block_size "
                f"{self.block_size}"
            )
        return self

    # -- reading and writing

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
        """Read a YAML file or a mapping; each override is `key=value`, with dots for keys inside keys.

        Raises `RecipeError`, one line that names every wrong key, for what is not a recipe.
        """
        if isinstance(source, Mapping):
            raw, where = dict(source), "recipe"
        else:
            raw, where = read(Path(source)), str(source)
        for change in overrides:
            override(raw, change)
        if wrong := [*unknown(raw, cls)]:
            raise RecipeError(f"{where}: {'; '.join(wrong)}")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = {e["loc"][:1]: e for e in reversed(error.errors())}  # a union complains once for each member
            raise RecipeError(f"{where}: {'; '.join(map(_sentence, reversed(first.values())))}") from None

    def to_yaml(self) -> str:
        """Every key that is not at its default, and dtype; files by their full paths, so that it runs from anywhere.

        Left out is what belongs to one call: where to go on, and whether to begin anew.
        """
        raw = self.model_dump(exclude_defaults=True, exclude={"overwrite_output_dir", "resume_from_checkpoint"})
        for part in raw["data"] if isinstance(self.data, list) else ():
            part["data"] = str(Path(part["data"]).resolve()) if Path(part["data"]).exists() else part["data"]
        for key in ("data", "model", "tokenizer"):  # names of corpora stay names
            if isinstance(raw.get(key), str) and Path(raw[key]).exists():
                raw[key] = str(Path(raw[key]).resolve())
        if isinstance(self.data, PairFiles):
            raw["data"] = {
                key: str(Path(value).resolve()) if value in self.data.files else value
                for key, value in raw["data"].items()
            }
        return dump(raw | {"dtype": self.dtype})  # its default was float32 once, and there its absence means that

    def differences(self, other: Recipe) -> list[str]:
        """Keys that decide the weights and that `other` has different: `key: here → there`."""
        here, there = (dict(leaves(yaml.safe_load(recipe.to_yaml()))) for recipe in (self, other))
        free = FREE - {"save_steps"} if "rewind" in (self.spike_policy, other.spike_policy) else FREE
        keys = [key for key in dict.fromkeys([*here, *there]) if key.split(".")[0] not in free]
        changed = [key for key in keys if here.get(key) != there.get(key)]
        return [f"{key}: {here.get(key, 'default')} → {there.get(key, 'default')}" for key in changed]

    # -- what follows from it

    @property
    def batch_size(self) -> int:
        """Samples of one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def source(self) -> Path:
        """The file of the text; raises `DataError` when there is none."""
        return self.sources[0]

    @property
    def sources(self) -> list[Path]:
        """The files of the data; raises `DataError` when one is missing."""
        if isinstance(self.data, PairFiles):
            return [resolve(file) for file in self.data.files]
        return [Path(text) / RECORD if is_built(text) else resolve(text) for text in self.texts]

    @property
    def texts(self) -> list[str]:
        """The names of the texts, as they are given; none where the data are pairs."""
        if isinstance(self.data, list):
            return [part.data for part in self.data]
        return [self.data] if isinstance(self.data, str) else []

    def warmup(self, steps: int) -> int:
        """Return how many of `steps` have a rising rate."""
        return self.warmup_steps or round(self.warmup_ratio * steps)


def _sentence(error: Mapping[str, Any]) -> str:
    """One error of pydantic as `key: what must hold, but is value`."""
    named = {name for part in (Recipe, PairFiles, Weighted, Curriculum, Muon, Tokenizer) for name in part.model_fields}
    key = ".".join(part for part in error["loc"] if part in named)
    if error["type"] == "missing":
        return f"{key} must be given"
    message = str(error["msg"])
    return f"{key}: {message[:1].lower()}{message[1:]}, but is {error['input']!r}"
