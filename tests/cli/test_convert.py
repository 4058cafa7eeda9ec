from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_a_directory(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    result = loquela("convert", model_directory, tmp_path / "target", "--json")
    assert result.code == 0
    printed = json.loads(result.out)
    assert printed["model"] == str(tmp_path / "target")
    assert printed["parity"]["max_abs_logit_diff"] <= printed["parity"]["bound"] == 1e-5
    again = loquela("convert", tmp_path / "target", tmp_path / "second")
    assert again.code == 0
    assert "parameters; over" in again.out
    assert again.out.count("\n") == 1


def test_what_was_left_out_is_said(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    loquela("convert", model_directory, tmp_path / "source")
    for file in (tmp_path / "source").glob("*token*"):
        file.unlink()
    (tmp_path / "source" / "manifest.json").unlink()
    (tmp_path / "source" / "LICENSE").write_text("")
    result = loquela("convert", tmp_path / "source", tmp_path / "target", "--json")
    assert result.code == 0
    assert "left out, since nothing is read from them: LICENSE" in result.err
    assert "has none either" in result.err
    json.loads(result.out)


def test_stories260k(loquela: Any, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models" / "stories260K" / "stories260K.bin"
    assert loquela("convert", source, tmp_path / "stories").code == 0
    arguments = ("generate", "-m", tmp_path / "stories", "--temperature", "0", "--max-new-tokens", "12")
    result = loquela(*arguments, "--prompt", "Once upon a time", "--json")
    assert json.loads(result.out)["text"].startswith(", there was a little girl named Lily")


def test_refusals_are_one_line(loquela: Any, model_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "broken").mkdir()
    for code, source, target in (
        (2, tmp_path / "nothing", tmp_path / "new"),
        (2, tmp_path / "notes.md", tmp_path / "new"),
        (2, model_directory, tmp_path / "notes.md"),
        (2, model_directory, tmp_path / "new.onnx"),
        (1, tmp_path / "broken", tmp_path / "new"),
    ):
        result = loquela("convert", source, target)
        assert result.code == code
        assert result.out == ""
        assert result.err.startswith("loquela: ")
        assert result.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
