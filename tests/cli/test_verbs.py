"""What stands before the verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]


def test_a_verb_that_is_not_there_is_one_line_that_names_the_nearest(loquela: Run) -> None:
    done = loquela("evalaute", "-m", "stories")
    assert (done.code, done.out) == (2, "")
    assert done.err == "loquela: there is no verb 'evalaute'; did you mean 'evaluate'? (loquela --help lists them)\n"
