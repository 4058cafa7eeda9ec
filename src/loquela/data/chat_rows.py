"""Rows that are conversations: Alpaca, ShareGPT, chat messages, and pairs of answers of which one is preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loquela.errors import DataError

__all__ = ["Conversation", "Message", "alpaca", "messages", "preference", "sharegpt", "text_of"]

Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"} | {
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


@dataclass(frozen=True)
class Conversation:
    """Messages whose assistant's turns are to be learnt; `rejected`, a worse last turn, where the row has one."""

    messages: tuple[Message, ...]
    rejected: str | None = None


def text_of(fields: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    """Return the text under `key`; raises `DataError` unless it is one, and is not `empty`."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"must have a text under {key!r}, but has {_kind(value)}")
    value = str(value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"must be whole characters, but {key!r} has half a surrogate pair at {error.start}") from None
    if not empty and not value.strip():
        raise DataError(f"must have text under {key!r}, but it is empty")
    return value


def alpaca(fields: Mapping[str, Any]) -> Conversation:
    """Read `instruction`, `input` (may be empty or missing), `output`; `system` where there is one."""
    return Conversation((*_asked(fields), {"role": "assistant", "content": text_of(fields, "output")}))


def sharegpt(fields: Mapping[str, Any]) -> Conversation:
    """Read `conversations`, a list of {`from`, `value`}."""
    return Conversation(_ending(_sharegpt(fields["conversations"], fields)))


def messages(fields: Mapping[str, Any]) -> Conversation:
    """Read `messages`, a list of {`role`, `content`}."""
    return Conversation(_ending(_chat(fields["messages"])))


def preference(fields: Mapping[str, Any]) -> Conversation:
    """Read `chosen` and `rejected` answers to `prompt`, `instruction`, `messages` or `conversations`."""
    asked: Sequence[Message]
    if "conversations" in fields:
        asked = _sharegpt(fields["conversations"], fields)
    elif isinstance(fields.get("prompt", fields.get("messages")), list):
        asked = _chat(fields.get("prompt", fields.get("messages")))
    elif "prompt" in fields:
        asked = [{"role": "user", "content": text_of(fields, "prompt")}]
    elif "instruction" in fields:
        asked = _asked(fields)
    else:
        asked, fields = _shared_start(fields)
    chosen, rejected = _answer(fields, "chosen"), _answer(fields, "rejected")
    return Conversation((*asked, {"role": "assistant", "content": chosen}), rejected)


def _asked(fields: Mapping[str, Any]) -> list[Message]:
    question = text_of(fields, "instruction")
    if fields.get("input") is not None and (more := text_of(fields, "input", empty=True)).strip():
        question += "\n\n" + more
    return [*_system(fields), {"role": "user", "content": question}]


def _system(fields: Mapping[str, Any]) -> list[Message]:
    said = fields.get("system")
    return [{"role": "system", "content": said}] if isinstance(said, str) and said.strip() else []


def _sharegpt(turns: Any, fields: Mapping[str, Any]) -> list[Message]:
    found = _system(fields)
    for number, turn in enumerate(_list(turns, "conversations"), 1):
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        if speaker not in list(_SHAREGPT):
            raise DataError(f"turn {number} must be from one of {', '.join(_SHAREGPT)}, but is from {speaker!r}")
        found.append({"role": _SHAREGPT[speaker], "content": text_of(turn, "value")})
    return found


def _chat(turns: Any) -> list[Message]:
    found = []
    for number, turn in enumerate(_list(turns, "messages"), 1):
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if role not in ROLES:
            raise DataError(f"message {number} must have a role of {', '.join(ROLES)}, but has {role!r}")
        found.append({"role": role, "content": text_of(turn, "content")})
    return found


def _list(turns: Any, key: str) -> list[Any]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"must have a list of turns under {key!r}, but has {_kind(turns)}")
    return turns


def _ending(turns: list[Message]) -> tuple[Message, ...]:
    if not any(turn["role"] == "assistant" for turn in turns):
        raise DataError("must have a turn of the assistant to learn, but has none")
    while turns[-1]["role"] != "assistant":  # a question without its answer teaches nothing
        turns = turns[:-1]
    return tuple(turns)


def _answer(fields: Mapping[str, Any], key: str) -> str:
    answer = fields[key]
    if isinstance(answer, list):
        answer = answer[-1] if answer else None
    if isinstance(answer, Mapping):
        return text_of(answer, "value" if "value" in answer else "content")
    return text_of(fields, key)


def _shared_start(fields: Mapping[str, Any]) -> tuple[list[Message], Mapping[str, Any]]:
    """Two whole conversations that differ in their last turn."""
    if not all(isinstance(fields[key], list) for key in ("chosen", "rejected")):
        raise DataError("must have a prompt, instruction, messages or conversations that the answers are to")
    return _chat(fields["chosen"][:-1]), fields


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
