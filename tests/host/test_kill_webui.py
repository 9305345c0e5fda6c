"""The short form of `kill_webui.py`, which kills as often as it is told to."""

from __future__ import annotations

import kill_webui
import pytest


@pytest.mark.slow
def test_a_killed_and_restarted_webui_finds_its_training_which_did_not_notice(tmp_path, trainer):
    kill_webui.prove(tmp_path, trainer, kills=2, seed=1, steps=30)
