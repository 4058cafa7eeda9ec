"""Directories of sentence-transformers: what turns hidden states into one vector per text.

`modules.json` lists what comes after the network: `1_Pooling` (its config.json) and perhaps `2_Normalize`. Beside it
stand `sentence_bert_config.json` (the longest text) and `config_sentence_transformers.json` (prompts).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loquela.checkpoint.files import inside, read_json
from loquela.errors import CheckpointError
from loquela.layers.heads import POOLINGS

__all__ = ["Pooling", "read_pooling", "sentence_files"]

MODULES, SETTINGS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"

_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The switches of files before version 6, in the order in which several modes stand side by side in a vector."""


@dataclass(frozen=True)
class Pooling:
    """How a text becomes a vector; see `loquela.layers.heads.POOLINGS` for the modes."""

    modes: tuple[str, ...] = ("mean",)
    normalise: bool = False
    max_length: int | None = None
    """Tokens of the longest text, those that the tokenizer adds included; None: the context window."""
    prompt: str = ""
    """What stands before every text."""


def read_pooling(directory: str | Path) -> Pooling | None:
    """Return what a directory says about embeddings, None when it is not one of sentence-transformers.

    Raises `CheckpointError` for a module or a setting that is not known here.
    """
    directory = Path(directory)
    if not inside(directory, MODULES).is_file():
        return None
    modules = _modules(directory)
    kinds = [kind for kind, _ in modules]
    if (
        kinds[:2] != ["Transformer", "Pooling"]
        or kinds[2:] not in ([], ["Normalize"])
        or modules[0][1] not in ("", ".")
    ):
        raise CheckpointError(
            f"{directory / MODULES} must list a Transformer in the directory itself, a Pooling and perhaps a "
            f"Normalize, but lists {', '.join(f'{kind} in {path!r}' for kind, path in modules)}"
        )
    pooling = read_json(directory, f"{modules[1][1]}/config.json")
    return Pooling(
        modes=_modes(directory, pooling),
        normalise="Normalize" in kinds,
        max_length=_max_length(directory),
        prompt=_prompt(directory, include=pooling.get("include_prompt", True)),
    )


def sentence_files(pooling: Pooling, dim: int) -> dict[str, bytes]:
    """Return the files, by name, that make a model directory one of sentence-transformers; `dim` is the network's."""
    package = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * pooling.normalise)]
    mode = pooling.modes[0] if len(pooling.modes) == 1 else list(pooling.modes)
    files: dict[str, Any] = {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": dim, "pooling_mode": mode, "include_prompt": True},
        SETTINGS: {"max_seq_length": pooling.max_length, "do_lower_case": False},
        PROMPTS: {
            "prompts": {"default": pooling.prompt} if pooling.prompt else {},
            "default_prompt_name": "default" if pooling.prompt else None,
        },
    }
    return {name: json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n" for name, value in files.items()}


def _modules(directory: Path) -> list[tuple[str, str]]:
    """Return the kind and the path of each module."""
    file = inside(directory, MODULES)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{file} must be a list of modules with type and path, but is not: {error}") from error


def _modes(directory: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for key, mode in _OLD_MODES.items() if config.get(key)] or ["mean"]
    modes = (given,) if isinstance(given, str) else tuple(given)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise CheckpointError(f"{directory}: pooling must be one of {', '.join(POOLINGS)}, but is {unknown[0]!r}")
    return modes


def _optional(directory: Path, name: str) -> dict[str, Any]:
    return read_json(directory, name) if inside(directory, name).is_file() else {}


def _max_length(directory: Path) -> int | None:
    """Version 6 keeps the longest text with the tokenizer, older ones in a file of its own."""
    settings = _optional(directory, SETTINGS)
    if settings.get("do_lower_case"):
        raise CheckpointError(f"{directory / SETTINGS}: do_lower_case must be false, let the tokenizer do it")
    if settings.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise CheckpointError(
            f"{directory / SETTINGS}: transformer_task must be feature-extraction, "
            f"but is {settings['transformer_task']!r}"
        )
    length = settings.get("max_seq_length") or _optional(directory, "tokenizer_config.json").get("model_max_length")
    if length is not None and (not isinstance(length, (int, float)) or length < 1):
        raise CheckpointError(f"{directory}: max_seq_length must be a positive whole number, but is {length!r}")
    return int(length) if length is not None and length < 2**31 else None  # "no bound" is written as 10^30


def _prompt(directory: Path, *, include: bool) -> str:
    config = _optional(directory, PROMPTS)
    name = config.get("default_prompt_name")
    prompt = "" if name is None else (config.get("prompts") or {}).get(name)
    if not isinstance(prompt, str):
        raise CheckpointError(f"{directory / PROMPTS} must have the prompt {name!r} that it names, but has not")
    if prompt and not include:
        raise CheckpointError(
            f"{directory}: include_prompt must be true, but the tokens of a prompt are to be left out"
        )
    return prompt
