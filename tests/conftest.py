"""What every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Two processes test side by side, and a property that takes long on a busy machine has not failed.
torch.set_num_threads(1)
settings.register_profile("loquela", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("loquela")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets that are not shipped; a test that needs them skips, and says so, where they are missing."""
    path = Path(os.environ.get("LOQUELA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set LOQUELA_SHARED_DATA")
    return path
