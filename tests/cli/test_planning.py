from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from loquela.cli.planning import number, parameters_meant
from loquela.cli.size import app
from loquela.errors import UsageError


def run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, done.stderr


def test_a_plan_is_one_json_object() -> None:
    out, _ = run("7B", "--plan", "--devices", "64", "--hardware", "a100", "--train-tokens", "2T", "--json")
    made = json.loads(out)["plan"]
    assert made["tokens"] == 2 * 10**12
    assert (made["devices"], made["hardware"]) == (64, "a100")
    assert 60 < made["days"] < 400


def test_a_plan_as_a_table() -> None:
    out, err = run("1T", "--plan", "--devices", "8192", "--tensor-parallel", "8")
    assert "8,192 × h100, matrices over 8" in out
    assert "fits (" in out
    assert "LLaMA's form" in err


def test_numbers_as_people_write_them() -> None:
    assert (number("300B"), number("1.4t"), number("3e11"), number("5")) == (3 * 10**11, 14 * 10**11, 3 * 10**11, 5)
    assert (parameters_meant("7B"), parameters_meant("1.5T"), parameters_meant("gpt2")) == (7e9, 1.5e12, None)
    with pytest.raises(UsageError, match="must be like 300B"):
        number("many")
