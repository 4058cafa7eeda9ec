"""The recipe of a tuning: a dict, YAML or flags, checked to the last key before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loquela.data.pairs import FORMATS
from loquela.errors import RecipeError
from loquela.peft.base import METHODS as PEFT_METHODS
from loquela.peft.base import method
from loquela.training.recipe_file import dump, leaves, one_of, override, read, unknown
from loquela.training.schedules import SCHEDULES

__all__ = ["METHODS", "Task", "TuneRecipe"]

Count = Annotated[int, Field(ge=1, le=2**31)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

METHODS = ("full", *PEFT_METHODS)
RATES = {"full": 5e-5, "selective": 1e-4, "lora": 2e-4, "adapter": 5e-4, "ia3": 5e-3, "prompt": 1e-2, "prefix": 5e-3}
"""The learning rate of each method where the recipe names none: the fewer numbers are tuned, the larger."""
WIDE, MOST_RAISED = 4096, 10.0
"""The width of a base at which the rates of `NARROW` hold; below it they rise in proportion, at most so many times."""
NARROW = ("lora", "adapter")
DEFAULTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "selective": {"tune": ["attention", "recurrent"]},
    "prompt": {"prompt_tuning_init": "SAMPLE_VOCAB"},
}
"""Settings that hold where the recipe does not name them."""
FREE = frozenset(
    "output_dir overwrite_output_dir resume_from_checkpoint save_steps save_total_limit logging_steps".split()
)
"""Keys that change nothing in the weights: a run may go on with other values of these."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Task(_Strict):
    """One of several tasks: its own file, format and template, and its weight in the mixture."""

    data: str = Field(description="A file of rows, or a data set of the Hub.")
    name: str | None = Field(default=None, description="What the task is called; else the file's name.")
    format: str | None = Field(default=None, description="How its rows are read; else detected.")
    template: str | None = Field(default=None, description="How its prompts are written.")
    columns: list[str] = Field(default_factory=list, description="The cells of a table without a header.")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Its share of the samples, relative to the others; else as many as it has rows."
    )


class TuneRecipe(_Strict):
    """All that decides a tuning. Names are those of Hugging Face's Trainer and of PEFT wherever they have one."""

    model: str = Field(description="The directory of the model that is tuned.")
    data: str | list[Task | str] = Field(description="A file of rows, or several tasks that are mixed.")
    output_dir: str = Field(description="Where the adapter or the model, its evidence and its checkpoints live.")
    overwrite_output_dir: bool = Field(default=False, description="Begin anew in a directory that holds another run.")
    resume_from_checkpoint: bool = Field(default=True, description="Go on from the newest intact checkpoint.")

    format: str | None = Field(default=None, description=f"One of {', '.join(FORMATS)}; else detected.")
    template: str | None = Field(
        default=None,
        description="How prompts are written: `model` (its chat template), `instruction`, a file, a Jinja chat "
        "template, or a text with {fields}.",
    )
    columns: list[str] = Field(default_factory=list, description="The cells of a table without a header.")
    labels: list[str] = Field(default_factory=list, description="All labels of a classifier; else those of the rows.")
    encoding: str = Field(default="utf-8", description="How the bytes of the files are text.")
    skip_bad_rows: bool = Field(default=False, description="Leave wrong rows out, counted, instead of stopping.")
    too_long: Literal["error", "truncate", "drop"] = Field(
        default="error", description="What becomes of a sample longer than max_seq_length."
    )
    max_seq_length: Count | None = Field(default=None, description="Tokens of a sample; else the context window.")
    validation_data: str | None = Field(default=None, description="Held-out rows; else a part of the data.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="That part.")
    validation_rows: Count = Field(default=1000, description="Rows that are held out at most.")
    train_rows: Count | None = Field(default=None, description="Rows to learn from, the first of their order; all.")
    mixture_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0, description="Shares of several tasks are taken to the power of 1 / this; large: equal shares."
    )

    method: str = Field(default="lora", description=f"One of {', '.join(METHODS)}.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The method's own, under PEFT's names.")
    base_bits: Literal[4, 8] | None = Field(
        default=None, description="Store the frozen base in so many bits (QLoRA); none: as it is."
    )
    beta: Annotated[float, Field(gt=0)] = Field(default=0.1, description="DPO: how near to the base it stays.")

    per_device_train_batch_size: Count = Field(default=8, description="Samples computed at once, at most.")
    per_device_eval_batch_size: Count = Field(default=16, description="Samples scored at once.")
    gradient_accumulation_steps: Count = Field(default=1, description="Such batches in one update.")
    packing: bool = Field(
        default=True, description="Put short samples side by side, where the model can keep them apart."
    )
    num_train_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=3.0, description="Passes over the rows; max_steps wins where both are given."
    )
    max_steps: Count | None = Field(default=None, description="Updates in all.")
    learning_rate: Size | None = Field(default=None, description="AdamW's; else what suits the method.")
    weight_decay: Size = Field(default=0.0, description="Decoupled, of matrices only.")
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(default=1.0, description="Clip the gradient.")
    lr_scheduler_type: str = Field(default="linear", description=f"One of {', '.join(SCHEDULES)}.")
    warmup_ratio: Fraction = Field(default=0.05, description="Share of the steps with a rising rate.")

    logging_steps: Count = Field(default=10, description="Rows of loss.csv: the mean loss of so many steps.")
    eval_steps: Count | None = Field(default=None, description="Score the held-out rows every so many steps; 4 times.")
    save_steps: Count = Field(default=200, description="A checkpoint every so many steps.")
    save_total_limit: Count | None = Field(default=2, description="Checkpoints kept while it runs.")
    load_best_model_at_end: bool = Field(default=True, description="Keep the best on the held-out rows, not the last.")

    probe: list[str] = Field(
        default_factory=list,
        description="Files whose scores tell what is forgotten: texts, or rows of tasks; else a sample that the base "
        "writes.",
    )
    probe_tokens: Count = Field(default=768, description="Tokens of that sample.")
    max_forget: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Bits per byte of the probe that may be lost."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Decides everything that is random.")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="auto",
        description="What products of updates are computed in; auto: bfloat16 where that is faster. A narrow type "
        "falls back to float32 where it would be slow. Scores are computed in float32.",
    )

    @model_validator(mode="after")
    def _names_exist(self) -> TuneRecipe:
        one_of("method", self.method, METHODS)
        one_of("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        for form in (self.format, *(task.format for task in self.tasks)):
            if form is not None:
                one_of("format", form, FORMATS)
        if self.method == "full" and self.settings:
            raise RecipeError(f"method full has no settings of its own, but {', '.join(self.settings)} is given")
        if self.method in ("full", "selective") and self.base_bits is not None:
            raise RecipeError(f"base_bits needs a method that leaves the base frozen, but the method is {self.method}")
        return self

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> TuneRecipe:
        """Read a YAML file or a mapping; each override is `key=value`, with dots for keys inside keys.

        A key that the recipe lacks but the method knows (`r`, `lora_alpha`, …) is one of its `settings`. Raises
        `RecipeError`, one line that names every wrong key.
        """
        if isinstance(source, Mapping):
            raw, where = dict(source), "recipe"
        else:
            raw, where = read(Path(source)), str(source)
        for change in overrides:
            key = change.partition("=")[0]
            own = key.split(".")[0] in cls.model_fields or key not in _settings_of(raw)
            override(raw, change if own else f"settings.{change}")
        if wrong := [*unknown({k: v for k, v in raw.items() if k != "settings"}, cls)]:
            more = sorted(_settings_of(raw) - cls.model_fields.keys())
            and_more = f" (settings of the method: {', '.join(more)})" if more else ""
            raise RecipeError(f"{where}: {'; '.join(wrong)}{and_more}")
        if isinstance(raw.get("settings"), dict):
            raw["settings"] = {key: _listed(raw, key, value) for key, value in raw["settings"].items()}
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = {e["loc"][:1]: e for e in reversed(error.errors())}  # a union complains once for each member
            raise RecipeError(f"{where}: {'; '.join(map(_sentence, reversed(first.values())))}") from None

    def to_yaml(self) -> str:
        """Every key that is not at its default; files by their full paths, so that it runs from anywhere."""
        raw = self.model_dump(exclude_defaults=True, exclude={"overwrite_output_dir", "resume_from_checkpoint"})
        for key in ("model", "data", "validation_data"):
            if isinstance(raw.get(key), str) and Path(raw[key]).exists():
                raw[key] = str(Path(raw[key]).resolve())
        return dump(raw)

    def differences(self, other: TuneRecipe) -> list[str]:
        """Keys that decide the weights and that `other` has different: `key: here → there`."""
        here, there = (dict(leaves(yaml.safe_load(recipe.to_yaml()))) for recipe in (self, other))
        keys = [key for key in dict.fromkeys([*here, *there]) if key.split(".")[0] not in FREE]
        changed = [key for key in keys if here.get(key) != there.get(key)]
        return [f"{key}: {here.get(key, 'default')} → {there.get(key, 'default')}" for key in changed]

    @property
    def tasks(self) -> list[Task]:
        """The tasks; one, unless `data` lists several."""
        if isinstance(self.data, str):
            return [Task(data=self.data, format=self.format, template=self.template, columns=self.columns)]
        given = [Task(data=task) if isinstance(task, str) else task for task in self.data]
        return [
            task.model_copy(
                update={
                    "format": task.format or self.format,
                    "template": task.template or self.template,
                    "columns": task.columns or self.columns,
                }
            )
            for task in given
        ]

    def rate(self, dim: int) -> float:
        """Return the learning rate for a base of width `dim`.

        The usual rates of fresh matrices (2e-4 for LoRA) are those of bases of billions of parameters. A narrow base
        learns next to nothing from them: 400 labelled sentences and all-MiniLM-L6-v2 (width 384) reach 65 % at 2e-4 and
        85 % at 2e-3.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        raised = min(MOST_RAISED, max(1.0, WIDE / dim)) if self.method in NARROW else 1.0
        return RATES.get(self.method, 1e-3) * raised

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's settings, with our defaults."""
        if self.method == "selective" and self.settings:
            return self.settings
        return DEFAULTS.get(self.method, {}) | self.settings

    @property
    def batch_size(self) -> int:
        """Samples of one update."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def _listed(raw: Mapping[str, Any], key: str, value: Any) -> Any:
    """Names with commas, where the method wants a list of them."""
    if not isinstance(value, str) or key not in _settings_of(raw):
        return value
    kind = str(
        method(raw.get("method", TuneRecipe.model_fields["method"].default)).CONFIG.__dataclass_fields__[key].type
    )
    only_lists = "list[str]" in kind and "| str" not in kind
    return value.split(",") if only_lists or ("list[str]" in kind and "," in value) else value


def _settings_of(raw: Mapping[str, Any]) -> set[str]:
    """The names of the settings that the method of an unchecked recipe knows."""
    name = raw.get("method", TuneRecipe.model_fields["method"].default)
    return set() if name not in PEFT_METHODS else {*method(name).CONFIG.__dataclass_fields__} - {"extra"}


def _sentence(error: Mapping[str, Any]) -> str:
    """One error of pydantic as `key: what must hold, but is value`."""
    key = ".".join(str(part) for part in error["loc"] if part in TuneRecipe.model_fields or part in Task.model_fields)
    if error["type"] == "missing":
        return f"{key} must be given"
    message = str(error["msg"])
    return f"{key}: {message[:1].lower()}{message[1:]}, but is {error['input']!r}"
