"""The card of a house model: what it is, how it was made, what was measured; README.md in the model's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["card"]


def card(
    name: str,
    said: Mapping[str, Any],
    sources: Sequence[Mapping[str, str]],
    receipt: Mapping[str, Any],
    figures: Mapping[str, str],
    samples: Sequence[tuple[str, str]],
    base: str | None,
) -> str:
    """Return the card as Markdown. All numbers come from `receipt` and `figures`."""
    languages = [said["language"]] if isinstance(said["language"], str) else said["language"]
    machine = receipt["environment"]
    lines = [
        "---",
        f"language: [{', '.join(languages)}]",
        "license: apache-2.0",
        *([f"base_model: {base}"] if base else []),
        "---",
        "",
        f"# {name}: {said['title']}",
        "",
        said["what"],
        "",
        "```sh",
        _command(name, said, base),
        "```",
        "",
        "## Text it learnt from",
        "",
        "| text | licence |",
        "|---|---|",
        *(f"| {source['about']} | {source['licence']} |" for source in sources),
        "",
        "The weights are under the package's licence, Apache-2.0. Who passes on the texts themselves keeps to theirs.",
        "",
        "## How it was made",
        "",
        f"`python recipes/house/make.py --data DATA {name}` in the repository: recipes/house/{name}.yaml"
        f"{', tuned on ' + base if base else ''}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in _made(receipt).items()),
        f"| machine | {machine['processor']}, {_threads(machine)}, {machine['device']} |",
        f"| libraries | Python {machine['python']}, torch {machine['torch']} |",
        "",
        "The seconds are wall time; the machine may have done other work beside it. receipt.json has the whole recipe,",
        "the hashes of what went in, and the losses; loss.csv the course of the training.",
        "",
        "## Measured",
        "",
        "On text that the training did not see, with the weights as they are shipped (float16 on the disk, computed in",
        "float32); what it writes itself, with the settings of its generation_config.json.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in figures.items()),
        "",
        "## Samples",
        "",
        "Seed 0 each, none chosen.",
        "",
    ]
    for prompt, answer in samples:
        lines += ["> " + "\n> ".join(f"**{prompt.strip()}**{answer.rstrip()}".splitlines()), ""]
    return "\n".join([*lines, "## Limits", "", said["limits"], ""])


def _command(name: str, said: Mapping[str, Any], base: str | None) -> str:
    prompt = next(iter(said.get("prompts", said.get("texts", [""])))).replace("\n", "\\n")
    quoted = f"$'{prompt}'" if "\\n" in prompt else f'"{prompt}"'
    return f"loquela generate -m {base or name}{f' --adapter {name}' if base else ''} -p {quoted}"


def _made(receipt: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "parameters": f"{receipt['parameters']:,}",
        "steps, tokens": f"{receipt['steps']:,}, {receipt['tokens']:,}",
        "seconds": f"{receipt['seconds']:,.0f}",
    }
    if "trainable_parameters" in receipt:
        found = {"tuned parameters": f"{receipt['trainable_parameters']:,} beside {found.pop('parameters')}", **found}
    return found


def _threads(machine: Mapping[str, Any]) -> str:
    return f"{machine['threads']} of {machine['cores']} cores"
