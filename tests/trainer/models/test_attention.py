"""xformers is believed when it has done what a training asks of it."""

from __future__ import annotations

import pytest

from dreambooth.trainer.models import attention

WORKS = """
import torch

def memory_efficient_attention(query, key, value):
    return torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
"""
FORWARD_ONLY = """
def memory_efficient_attention(query, key, value):
    return query.detach()
"""
BUILT_FOR_ANOTHER = "raise ImportError('libtorch: undefined symbol')"
KILLS = "import os; os._exit(11)"


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        (WORKS, ""),
        (FORWARD_ONLY, "does not require grad"),
        (BUILT_FOR_ANOTHER, "undefined symbol"),
        (KILLS, "exit code 11"),
    ],
    ids=["works", "has no gradient", "built for another torch", "kills its process"],
)
def test_xformers_is_tried_in_a_process_of_its_own(operations, said, tmp_path, monkeypatch):
    package = tmp_path / "xformers"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "0"')
    (package / "ops.py").write_text(operations)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fault = attention.xformers_fault("cpu")
    assert said in fault and bool(fault) == bool(said)
