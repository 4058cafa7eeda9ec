from __future__ import annotations

import pytest

from loquela.cli import progress
from loquela.training.events import Logged, Started, Stepped
from loquela.training.log import Row


def test_a_line_of_a_run_tells_loss_speed_gradient_and_utilisation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with progress.TrainingView() as view:
        view(Started(0, 40, 1_000_000, 512, 1000, 2000, 100, 64))
        view(Stepped(1, 4.0, 64, 1.0))
        assert "gradient" not in capsys.readouterr().err  # nothing is logged yet
        view(Logged(Row(1, 64, 4.0, None, 0.1, 1.25), 1.0, 64.0, 0.41, None))
        view(Stepped(2, 4.0, 128, 2.0))
    said = capsys.readouterr().err
    assert "step 2/40 · loss 4.000 · 2.89 bits/byte · 64 tokens/s · 0:38 left · gradient 1.2 · 41% of peak" in said
