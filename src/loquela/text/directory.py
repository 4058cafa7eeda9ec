"""The files of a tokenizer in a Hugging Face directory, in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loquela.errors import StorageError, TokenizerError
from loquela.text.library import library_errors

__all__ = ["LIMIT", "ROLES", "TokenizerFiles", "beside", "read", "text", "write"]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
LIMIT = 1 << 27
"""Bytes of one file; the largest vocabularies in use take a quarter of it."""


@dataclass
class TokenizerFiles:
    """`json` is the content of tokenizer.json, `roles` the special token of each role, `config` all else."""

    json: str
    roles: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None


def read(path: Path) -> TokenizerFiles:
    """Read a directory with tokenizer.json, or a tokenizer.json and what lies beside it; raises `TokenizerError`."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise TokenizerError(f"a tokenizer must have a tokenizer.json, but {file} does not exist")
    return beside(file, text(file))


def beside(file: Path, content: str) -> TokenizerFiles:
    """Return a tokenizer whose tokenizer.json is `content`, with what lies beside the vocabulary `file`."""
    files = TokenizerFiles(content)
    files.config = _object(file.parent / "tokenizer_config.json")
    special = _object(file.parent / "special_tokens_map.json")
    for role in ROLES:
        name = _content(files.config.pop(f"{role}_token", None)) or _content(special.get(f"{role}_token"))
        if name is not None:
            files.roles[role] = name
    files.chat_template = _default_template(files.config.pop("chat_template", None))
    template = file.parent / "chat_template.jinja"
    if template.is_file():
        files.chat_template = text(template)
    return files


def write(directory: Path, files: TokenizerFiles) -> None:
    """Write the files that transformers opens as they are; raises `StorageError`."""
    tokens = {f"{role}_token": name for role, name in files.roles.items()}
    least = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    contents = {
        "tokenizer_config.json": _dumps({**least, **files.config, **tokens}),
        "special_tokens_map.json": _dumps(tokens),
        "chat_template.jinja": files.chat_template,
        "tokenizer.json": files.json,  # last: where it is, all is
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            if content is None:
                (directory / name).unlink(missing_ok=True)
            else:
                _replace(directory / name, content)
    except OSError as error:
        raise StorageError(f"the tokenizer could not be written to {directory}: {error.strerror}") from error


def _replace(file: Path, content: str) -> None:
    """Write a file beside its place, and put it there when it is whole."""
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(content, encoding="utf-8", newline="")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def text(file: Path) -> str:
    """Return the text of a file; raises `TokenizerError`, also when it is longer than `LIMIT`."""
    with library_errors(f"{file} must be a text file in utf-8, but cannot be read"):
        if (size := file.stat().st_size) > LIMIT:
            raise TokenizerError(f"{file} must have at most {LIMIT:,} bytes, but has {size:,}")
        return file.read_bytes().decode()


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = text(file)
    with library_errors(f"{file} must be a JSON object, but cannot be read"):
        value = json.loads(content)
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} must be a JSON object, but is a {type(value).__name__}")
    return value


def _dumps(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _content(token: Any) -> str | None:
    """A special token is written as its text, or as an object that says more about it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _default_template(template: Any) -> str | None:
    """A chat template is written as itself, or as a list of named ones, of which `default` is ours."""
    if isinstance(template, list):
        template = next(
            (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None
