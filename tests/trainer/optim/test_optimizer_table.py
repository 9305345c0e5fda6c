from __future__ import annotations

import math

import pytest
import torch
from optional import skip_without

from dreambooth import pins
from dreambooth.shared.settings import OPTIMIZERS, TrainingSettings
from dreambooth.trainer.optim.optimizer_table import SMALLEST_8BIT, TABLE, kind_of
from dreambooth.trainer.optim.optimizers import ParameterGroup, build_optimizer

# a linear layer's, a convolution's, a bias's, a small one's
SHAPES = ((96, 80), (32, 16, 3, 3), (4200,), (12, 7))


def test_the_settings_offer_exactly_the_tables_rows():
    assert tuple(TABLE) == OPTIMIZERS


def test_the_arguments_that_rows_take_come_from_settings_that_there_are():
    for row in TABLE.values():
        names = [
            name for value in row.takes.values() for name in ((value,) if isinstance(value, str) else value)
        ]
        assert all(hasattr(TrainingSettings(), name) for name in names), row.name


def test_every_optional_library_is_pinned():
    for row in TABLE.values():
        if row.library:
            assert row.library.name in pins.read(row.library.file), row.name


def test_what_needs_no_library_is_a_part_of_the_trainers_own():
    own = {library.module for library in pins.LIBRARIES}
    assert {row.target.split(".")[0] for row in TABLE.values() if row.library is None} <= own


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", TABLE)
def test_an_optimizer_keeps_as_many_bytes_as_its_row_says(name):
    skip_without(name)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    settings = TrainingSettings(optimizer=name)
    optimizer = build_optimizer(settings, [ParameterGroup("unet", weights, 1e-3)], torch.device("cpu"))
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for weight, shape in zip(weights, SHAPES, strict=True):
        tensors = {
            key: value for key, value in optimizer.state[weight].items() if isinstance(value, torch.Tensor)
        }
        # the quantisation's table of 256 values is one for all tensors
        kept = sum(
            value.nbytes for key, value in tensors.items() if not key.startswith("qmap") and value.numel() > 1
        )
        assert kept == pytest.approx(TABLE[name].bytes_of(shape), rel=1e-3), shape


def test_eight_bits_begin_where_the_library_begins_with_them():
    small, large = (TABLE["adamw8bit"].bytes_of((count,)) for count in (SMALLEST_8BIT - 1, SMALLEST_8BIT))
    assert small == 8 * (SMALLEST_8BIT - 1) and large == 2 * SMALLEST_8BIT + 2 * 4 * SMALLEST_8BIT / 256


def test_an_import_path_is_a_row_of_which_nothing_is_known():
    row = kind_of("torch.optim.SGD")
    assert (
        row.target == "torch.optim.SGD" and row.exact_resume is None and not row.takes and row.library is None
    )
    assert row.bytes_of((3, 5)) == 2 * 4 * math.prod((3, 5))
    assert kind_of("adafactor") is TABLE["adafactor"]


def test_bitsandbytes_is_proved_by_whatever_name_its_class_is_called():
    row = kind_of("bitsandbytes.optim.PagedLion8bit")
    assert row.eight_bit and row.library is TABLE["adamw8bit"].library
    assert not kind_of("bitsandbytes.optim.Lion").eight_bit
