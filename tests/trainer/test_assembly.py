"""The parts of a training as a plan has them built."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dreambooth.shared.settings import Settings, TrainingSettings
from dreambooth.trainer.assembly import make_deterministic


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("asked", [True, False])
def test_deterministic_kernels_are_used_where_the_setting_asks_for_them(asked):
    torch.use_deterministic_algorithms(False)
    make_deterministic(SimpleNamespace(settings=Settings(training=TrainingSettings(deterministic=asked))))
    assert torch.are_deterministic_algorithms_enabled() is asked
