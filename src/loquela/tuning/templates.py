"""How examples become prompts: the one renderer for conversations, a text with {fields} for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loquela.data.pairs import Examples
from loquela.errors import DataError, UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["BARE", "INSTRUCTION", "PROMPTS", "Templates", "templates_for"]

INSTRUCTION = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{% elif message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% else %}{{ '### Instruction:\\n' + message.content + '\\n\\n### Response:\\n' }}{% endif %}"
    "{% endfor %}"
)
"""The chat template of a base model that has none: what is asked and what is answered, under two headings."""
PROMPTS = {
    "prompt-completion": "{prompt}",
    "translation": "{source}\n\nTranslation:\n",
    "summarisation": "{dialogue}\n\nSummary:\n",
    "classification": "{text}\n\nLabel:\n",
}
"""The prompt of each format where none is given, for a model that writes on from it."""
BARE = {
    "prompt-completion": "{prompt}",
    "translation": "{source}",
    "summarisation": "{dialogue}",
    "classification": "{text}",
}
"""The same for a model that reads the prompt as its source."""
_CONVERSATIONS = ("chat", "sharegpt", "alpaca", "preference")
_NAMED = ("model", "instruction")


@dataclass(frozen=True)
class Templates:
    """`chat` renders conversations (None: there is no template), `prompt` the fields of a pair.

    With both, the prompt of a pair becomes what the user says.
    """

    chat: str | None
    prompt: str | None
    note: str


def templates_for(examples: Examples, given: str | None, tokenizer: Tokenizer, *, bare: bool) -> Templates:
    """Choose the templates of a file's format; `bare` where the prompt is a source.

    `given` is `model`, `instruction`, a file, a Jinja template (it has `{%` or `{{ `), or a text with {fields}.
    """
    prompt = (BARE if bare else PROMPTS).get(examples.form)
    own = tokenizer.chat_template
    if given is not None and given not in _NAMED:
        written = _read(given)
        if "{%" in written or "{{ " in written:
            return Templates(written, prompt, "prompts are written by the chat template given")
        if examples.form in _CONVERSATIONS:
            raise UsageError(
                f"conversations ({examples.form}) need a chat template in Jinja, but the template given is {given!r}"
            )
        return Templates(None, written, f"prompts are written by the template given: {written!r}")
    if given == "model" and own is None:
        raise UsageError("the template `model` needs a model with a chat template, but this one has none")
    if examples.form not in _CONVERSATIONS and given is None:
        return Templates(None, prompt, f"prompts are written as {prompt!r}" if prompt else "texts are learnt whole")
    if own is not None and given != "instruction":
        return Templates(own, prompt, "prompts are written by the model's chat template")
    begins = tokenizer.bos_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    note = "prompts are written by the template `instruction`, which is saved as the tuned model's chat template"
    return Templates(("{{ bos_token }}" if begins else "") + INSTRUCTION, prompt, note)


def _read(given: str) -> str:
    """A template is a text, or the name of a file that has one."""
    if "\n" in given or "{" in given:
        return given
    file = Path(given)
    if not file.is_file():
        raise UsageError(
            f"the template must be {', '.join(_NAMED)}, a file, or a text with {{fields}}, but is {given!r}"
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must be a template in UTF-8, but cannot be read: {error}") from None
