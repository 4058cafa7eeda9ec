"""Models of the Hugging Face Hub: fetched when a person asks for one, pinned to a commit, opened without a network.

`pull` is the only thing here that reaches the network. It keeps what the loader reads, under
`$LOQUELA_HOME/models/ORG/NAME/COMMIT` (`~/.cache/loquela` unless set), with a manifest, so that a damaged file is found
out later as in any model of ours. `resolve` turns `ORG/NAME` or `ORG/NAME@COMMIT` into that directory, and the name of
a house model into its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from loquela.checkpoint import house
from loquela.checkpoint.files import atomic_directory, write_bytes
from loquela.errors import CheckpointError, StorageError, UsageError

__all__ = ["PULLED", "home", "pull", "resolve"]

PULLED = "pulled.json"
"""What was asked for and what came, beside the files: `repo`, `revision`, `commit`."""
_PATTERNS = [
    *"config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json".split(),
    *"chat_template.jinja tokenizer.model spiece.model vocab.json merges.txt vocab.txt added_tokens.json".split(),
    *"*.safetensors *.safetensors.index.json modules.json sentence_*.json 1_Pooling/config.json README.md".split(),
    *"adapter_config.json LICENSE*".split(),
]
_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def home() -> Path:
    """Where pulled models live."""
    return Path(os.environ.get("LOQUELA_HOME") or Path("~/.cache/loquela").expanduser()) / "models"


def pull(name: str, *, revision: str | None = None, target: str | Path | None = None) -> tuple[Path, str]:
    """Fetch the model `ORG/NAME` at a `revision` (branch, tag or commit; else `main`); return its place and commit.

    What is there already is not fetched again. Weights in pickles are never fetched. Raises `UsageError` for what is
    no name, `CheckpointError` where the Hub has no such model or cannot be reached, `StorageError` for a full disk.
    """
    repo, given = _parsed(name)
    if given and revision and given != revision:
        raise UsageError(f"one revision must be given, but there are two: {given} and {revision}")
    revision = revision or given or "main"

    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        commit = HfApi().model_info(repo, revision=revision).sha
        if commit is None:
            raise CheckpointError(f"the Hub must say which commit {repo}@{revision} is, but does not")
        place = home() / repo / commit if target is None else Path(target)
        if place.is_dir() and target is None:
            return place, commit
        with atomic_directory(place) as temporary:
            snapshot_download(repo, revision=commit, local_dir=temporary, allow_patterns=_PATTERNS)
            shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the library's own notes
            if not any(temporary.glob("*.safetensors")):
                raise CheckpointError(f"{repo}@{revision} must have weights in safetensors, but has none")
            record = {"repo": repo, "revision": revision, "commit": commit}
            write_bytes(temporary / PULLED, json.dumps(record, indent=2).encode() + b"\n")
    except HFValidationError as error:
        raise UsageError(f"a model of the Hub must be named ORG/NAME, but is {name!r}: {_line(error)}") from None
    except StorageError:
        raise
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repo}@{revision} cannot be fetched: {_line(error)}") from None
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore")):  # the library's, of whatever version
            raise
        raise CheckpointError(f"{repo}@{revision} cannot be fetched: the Hub is not reached: {_line(error)}") from None
    return place, commit


def resolve(name: str | Path) -> Path:
    """Return the directory that `name` means: itself, a house model, or where the Hub's model was pulled to.

    Reaches no network. Raises `CheckpointError`, with the way out, where it was not pulled or at several commits.
    """
    path = house.model(name)
    if path.exists() or not _NAME.fullmatch(str(name)):
        return path
    repo, revision = _parsed(str(name))
    commits = sorted(place for place in (home() / repo).glob("*") if (place / "config.json").is_file())
    wanted = [place for place in commits if revision is None or _is(place, revision)]
    if len(wanted) == 1:
        return wanted[0]
    if wanted:
        known = ", ".join(f"{repo}@{place.name[:12]}" for place in wanted)
        raise CheckpointError(f"{name} must mean one commit, but {len(wanted)} were pulled: name one of {known}")
    raise CheckpointError(
        f"a model must be a directory, but {name} does not exist, nor was a model of that name pulled: "
        f"loquela pull {repo}" + (f" --revision {revision}" if revision else "")
    )


def _parsed(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise UsageError(f"a model of the Hub must be named ORG/NAME or ORG/NAME@REVISION, but is {name!r}")
    return match["repo"], match["revision"]


def _is(place: Path, revision: str) -> bool:
    if place.name.startswith(revision):
        return True
    try:
        return bool(json.loads((place / PULLED).read_bytes()).get("revision") == revision)
    except (OSError, ValueError, AttributeError):
        return False


def _line(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
