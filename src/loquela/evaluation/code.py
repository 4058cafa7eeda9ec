"""Programs that a model wrote, run against their tests (HumanEval, arXiv:2107.03374): only when it is allowed.

A program runs in a process of its own: no environment, an empty temporary directory, bounded processor time, memory,
file size, open files and processes, no sockets, and a clock that kills it. That keeps a model's blunders from doing
harm. It is no prison for a program that is written to break out: for such, run all of it in a virtual machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from loquela.errors import UsageError
from loquela.evaluation.items import Item
from loquela.evaluation.record import Record
from loquela.evaluation.subject import Subject
from loquela.evaluation.task import Task

__all__ = ["Runner", "passes"]

SECONDS = 5
_GUARD = """
import resource, sys, socket, os, signal
for limit, value in (
    (resource.RLIMIT_CPU, {seconds}), (resource.RLIMIT_AS, 1 << 30), (resource.RLIMIT_FSIZE, 1 << 20),
    (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
):
    resource.setrlimit(limit, (value, value))
def refused(*_, **__):
    raise PermissionError("a program under test may not do this")
for name in ("system", "fork", "forkpty", "kill", "killpg", "popen", "posix_spawn", "posix_spawnp", "execv", "execve",
             "remove", "unlink", "rename", "renames", "rmdir", "removedirs", "chmod", "chown", "chroot", "setuid",
             "symlink", "link", "truncate", "replace"):
    if hasattr(os, name):
        setattr(os, name, refused)
socket.socket = refused
socket.create_connection = refused
sys.modules["subprocess"] = sys.modules["ctypes"] = sys.modules["multiprocessing"] = None
sys.stdin = open(os.devnull)
"""


class Runner:
    """Lets a model complete programs, and runs them."""

    def __init__(self, subject: Subject, task: Task, *, allowed: bool) -> None:
        if not allowed:
            raise UsageError(
                f"task {task.name} runs programs that the model writes: say --allow-code-execution "
                "(allow_code_execution=True) if this machine may do that"
            )
        if sys.platform == "win32":
            raise UsageError(f"task {task.name} runs programs within limits that this system does not have: use Linux")
        self.subject, self.task = subject, task
        self._alone = threading.Lock()  # a program's seconds are its own

    def __call__(self, asked: Item) -> Record:
        """Return what the model wrote and whether it passes the tests."""
        prompt, row = asked.questions[0], asked.row
        output = self.subject.complete(prompt, max_new_tokens=self.task.max_new_tokens, stop=self.task.stop)
        program = f"{prompt}{output}\n\n{row['test']}\n\ncheck({row['entry_point']})\n"
        with self._alone:
            passed, why = passes(program)
        return {"output": output, "passed": passed, "why": why}


def passes(program: str, *, seconds: int = SECONDS) -> tuple[bool, str]:
    """Run a program within limits; return whether it ended by itself and well, and the last line of its complaint."""
    token = secrets.token_hex(8)  # what only a program that ran to its end prints
    with tempfile.TemporaryDirectory(prefix="loquela-") as directory:
        file, out, err = (Path(directory) / name for name in ("program.py", "stdout", "stderr"))
        file.write_text(_GUARD.format(seconds=seconds) + f'\n{program}\nprint("\\n{token}", flush=True)\n')
        with out.open("wb") as stdout, err.open("wb") as stderr:  # files, whose size is bounded, unlike a pipe's
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(file)],
                cwd=directory,
                env={"PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                process.wait(timeout=2 * seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return False, f"it did not end within {2 * seconds} seconds"
        if process.returncode == 0 and out.read_bytes().endswith(f"\n{token}\n".encode()):
            return True, ""
        lines = err.read_bytes().decode("utf-8", "replace").strip().splitlines()
    return False, lines[-1][:300] if lines else f"it ended with {process.returncode}"
