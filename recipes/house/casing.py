"""Capitals for the little stories, which their source has in lower case: sentence starts, speech, names, "I".

A name is a word that stands after "named" or "called", or is in a list of given names, and that is hardly ever behind
an article or an adjective but often begins a sentence. Mother and father are names where nothing says whose they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["Casing", "clean", "stories"]

_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+|\n+|[^\S\n]+|[^a-z\d\s]")
_BEFORE_NOUNS = frozenset(
    "the a an his her their my your its our some this that no every each one two three many any little big old new "
    "red blue pretty nice good small of kind best".split()
)
_NEVER = frozenset(  # in the list of given names, or after "named", and yet words of the stories
    "said happy saw can do an my ever able any believe sang forever win skip may wake trust admire drew chase given "
    "hung shine sir worth awesome sway fortune bond keen cotton heaven hope will sunny sky true joy merry out the her "
    "a for his him to it them someone down on from again eager big colorful green silly speed motion youth in as so "
    "what he she they that this me you i at all good bad back hop trouble miles grant brown summer in by up off".split()
)
_KIN = frozenset("mom mommy mum mummy mama dad daddy papa grandma grandpa granny".split())
_TITLES = frozenset("mr mrs ms miss dr".split())
_SPEECH = frozenset(
    "said asked shouted cried replied yelled called answered exclaimed whispered thought laughed says told giggled "
    "screamed sang added smiled begged explained roared chirped barked squeaked".split()
)
_MOJIBAKE = (
    *(("â€œ", '"'), ("â€™", "'"), ("â€˜", "'"), ("â€”", "-"), ("â€“", "-"), ("â€¦", "..."), ("â€", '"')),
    *(("“", '"'), ("”", '"'), ("’", "'"), ("‘", "'"), ("ã©", "é"), ("ã±", "ñ"), ("ã¡", "á")),
)
_BEGINNING = re.compile(r"(once|one (day|night|morning|sunny|time)|there (was|were|once)|\w+ (and \w+ )?(was|were) )")


def clean(text: str) -> str:
    """Undo the quotation marks and accents that were read in a wrong encoding, and blanks at the ends of lines."""
    for wrong, right in _MOJIBAKE:
        text = text.replace(wrong, right)
    return re.sub(r"[^\S\n]*\n[^\S\n]*", "\n", text)


def stories(text: str, shortest: int = 250, longest: int = 3000) -> list[str]:
    """Cut the text where a line follows a line: an empty one stands between paragraphs, none between stories.

    A piece of a few lines of speech is no story by itself and stays with the one before. Doubles and stories that are
    cut short, or very long, are left out.
    """
    found: list[list[str]] = [[]]
    for line in clean(text).split("\n"):
        if line and found[-1] and found[-1][-1]:
            so_far = sum(map(len, found[-1]))
            if so_far >= shortest and (len(line) >= 80 or _BEGINNING.match(line)):
                found.append([])
            else:
                found[-1].append("")
        if line or (found[-1] and found[-1][-1]):
            found[-1].append(line)
    whole = ("\n".join(lines).strip() for lines in found)
    return [s for s in dict.fromkeys(whole) if shortest <= len(s) <= longest and s[-1] in '.!?"' and s.isascii()]


class Casing:
    """Learns from all stories which words are names, then writes each with its capitals."""

    def __init__(self, texts: Iterable[str], given_names: Iterable[str]) -> None:
        given = frozenset(given_names)
        count, named, behind, first = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for text in texts:
            words = [word.removesuffix("'s") for word in _TOKEN.findall(text) if not word.isspace() or "\n" in word]
            for before, word in zip(["\n", *words], words, strict=False):
                count[word] += 1
                named[word] += before in ("named", "called")
                behind[word] += before in _BEFORE_NOUNS
                first[word] += before in ('"', ".", "!", "?") or "\n" in before
        self.names = {
            word
            for word, times in count.items()
            if word.isalpha() and len(word) > 1 and word not in _NEVER | _KIN | _TITLES
            if behind[word] < 0.05 * times and first[word] > (0.05 if named[word] else 0.25) * times
            if named[word] or (word in given and times > 2)
        }

    def __call__(self, text: str) -> str:
        """Return the story with capitals."""
        words = _TOKEN.findall(text)
        own = {b for a, b in zip(_dense(words), _dense(words)[1:], strict=False) if a == "named" and b.isalpha()}
        names = self.names | (own - _NEVER - _BEFORE_NOUNS)
        written, start, quoted, kin = [], True, False, False
        for place, word in enumerate(words):
            if "\n" in word:
                start, quoted = True, False
            elif word == '"':
                quoted = not quoted
                if quoted:
                    start = True
                elif start:  # what was said ended its sentence; "…!" she said goes on
                    start = not (_last(written) in "!?" and _speech_follows(words[place + 1 :]))
            elif word in (".", "!", "?"):
                start = not "".join(written[-2:]).lower().endswith(("mr", "mrs", "ms", "dr"))
            elif word[0].isalpha():
                bare = word.removesuffix("'s")
                before = _dense(written[-8:])[-2:]
                if bare in _KIN:
                    along = len(before) == 2 and before[1] in ("and", "or") and before[0].lower() in _KIN
                    theirs = bool(before) and (before[-1].lower() in _BEFORE_NOUNS or before[-1].endswith("'s"))
                    kin = kin if along else not theirs
                is_name = bare in names or bare in _TITLES or (bare in _KIN and kin)
                if start or is_name or word == "i" or word.startswith("i'"):
                    word = word[0].upper() + word[1:]
                start = False
            elif not word.isspace():
                start = start and word in "'-("
            written.append(word)
        return "".join(written)


def _dense(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.isspace()]


def _last(written: Sequence[str]) -> str:
    return next((word for word in reversed(written) if not word.isspace()), "")


def _speech_follows(words: Sequence[str]) -> bool:
    near = _dense(words[:10])[:4]
    return any(word in _SPEECH for word in near)
