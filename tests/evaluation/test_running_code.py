"""Programs that a model wrote: their tests decide, and their limits hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from loquela.errors import UsageError
from loquela.evaluation.code import passes
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.run import evaluate


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 + 1 == 2", ""),
        ("print('x' * 10)", ""),
        ("assert 1 + 1 == 3", "AssertionError"),
        ("import sys; sys.exit(0)", "ended with 0"),
        ("import os; os._exit(0)", "ended with 0"),
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.system('true')", "PermissionError"),
        ("import os; os.remove('/etc/hostname')", "PermissionError"),
        ("import subprocess", "ModuleNotFoundError"),
        ("import ctypes", "ModuleNotFoundError"),
        ("open('big', 'w').write('a' * (2 << 20))", "File too large"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_what_passes_and_what_does_not(program: str, expected: str) -> None:
    passed, why = passes(program)
    assert passed == (expected == "")
    assert expected in why


def test_no_environment_and_no_traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert passes(
        "import os\nassert 'canary' not in repr(os.environ)\nopen('left', 'w').write('x')\nassert os.listdir('.')"
    )[0]
    assert os.environ["OPENAI_API_KEY"] == "canary"


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)", "while True: print('x' * 999)"])
def test_what_does_not_end_is_ended(program: str) -> None:
    passed, _ = passes(program, seconds=1)
    assert not passed


def test_humaneval_by_its_own_solutions(llama: LocalSubject, shared_data: Path) -> None:
    class Right(LocalSubject):
        def complete(self, prompt: str, *, max_new_tokens: int, stop: Any) -> str:
            from loquela.evaluation.run import prepare_task

            rows = prepare_task("humaneval", data_dir=shared_data).rows
            return next(str(row["canonical_solution"]) for row in rows if row["prompt"] == prompt)

    found = evaluate(Right(llama.model), "humaneval", data_dir=shared_data, limit=3, allow_code_execution=True)
    assert found.results["humaneval"].scores == {"pass@1": 1.0}
    with pytest.raises(UsageError, match="--allow-code-execution"):
        evaluate(llama, "humaneval", data_dir=shared_data, limit=3)
