"""Which tensors make a layer together, and which lack something or do not go together."""

from __future__ import annotations

import pytest
import torch

from dreambooth.trainer.adapters.forms import fits_magnitude, lacking, made_shape, misfit
from dreambooth.trainer.adapters.kinds import KINDS

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
LOHA = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)}
TUCKER = {
    **{f"hada_w{n}_{side}": (2, width) for n in (1, 2) for side, width in (("a", 6), ("b", 5))},
    **{f"hada_t{n}": (2, 2, 3, 3) for n in (1, 2)},
}
LOKR = {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 5), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 1)}
GOOD = {
    "LoRA": ({UP: (6, 2), DOWN: (2, 5), "alpha": ()}, (6, 5)),
    "LoRA of a convolution": ({UP: (6, 2, 1, 1), DOWN: (2, 5, 3, 3), "alpha": (1,)}, (6, 5, 3, 3)),
    "LoRA with a core": ({UP: (6, 3, 1, 1), MID: (3, 2, 3, 3), DOWN: (2, 5, 1, 1)}, (6, 5, 3, 3)),
    "LoHa": (LOHA, (6, 5)),
    "LoHa of two ranks": ({**LOHA, "hada_w2_a": (6, 3), "hada_w2_b": (3, 5)}, (6, 5)),
    "LoHa with a core": (TUCKER, (6, 5, 3, 3)),
    "LoKr": (LOKR, (6, 5)),
    "LoKr, whole": ({"lokr_w1": (2, 5), "lokr_w2": (3, 1)}, (6, 5)),
    "LoKr of a convolution": ({"lokr_w1": (2, 5), "lokr_w2": (3, 1, 3, 3)}, (6, 5, 3, 3)),
    "LoKr with a core": (
        {"lokr_w1": (2, 5), "lokr_w2_a": (2, 3), "lokr_w2_b": (2, 1), "lokr_t2": (2, 2, 3, 3)},
        (6, 5, 3, 3),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_tensors_that_go_together_make_a_weight_of_the_shape_that_is_told(name) -> None:
    shapes, made = GOOD[name]
    assert lacking(shapes) == "" and misfit(shapes) == ()
    rows, columns = made_shape(shapes)
    assert rows * columns == torch.zeros(made).numel() and rows == made[0]
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    kind = KINDS[name[:4].lower()]
    assert kind.merged(torch.zeros(made), tensors, 1.0).shape == made


@pytest.mark.parametrize("name", GOOD)
def test_no_tensor_of_a_weight_can_be_left_out(name) -> None:
    shapes, _ = GOOD[name]
    for gone in shapes.keys() - {"alpha", MID, "hada_t1", "hada_t2", "lokr_t2"}:
        assert lacking(shapes.keys() - {gone}) == gone


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        ({DOWN, "alpha"}, UP), ({UP}, DOWN), ({"hada_w1_a"}, "hada_w1_b"), ({"lokr_w1"}, "lokr_w2"),
        ({"lokr_w1", "lokr_w2_b"}, "lokr_w2_a"), ({"lokr_w1_a", "lokr_w2"}, "lokr_w1_b"), ({"alpha"}, ""),
    ],
)  # fmt: skip
def test_what_is_lacking_is_named(names, lost) -> None:
    assert lacking(names) == lost


@pytest.mark.parametrize(
    ("shapes", "odd"),
    [
        ({UP: (64, 2), DOWN: (4, 256)}, (UP, DOWN)),
        ({UP: (64, 0), DOWN: (0, 256)}, (UP,)),
        ({UP: (64,), DOWN: (1, 256)}, (UP,)),
        ({UP: (64, 2, 3, 3), DOWN: (2, 8, 1, 1)}, (UP, DOWN)),
        ({UP: (64, 2), DOWN: (2, 8), "alpha": (2,)}, ("alpha",)),
        ({UP: (6, 2), MID: (2, 2), DOWN: (2, 5)}, (MID,)),
        ({UP: (6, 2), MID: (2, 3, 3, 3), DOWN: (2, 5)}, (MID, DOWN)),
        ({**LOHA, "hada_w1_a": (6, 3)}, ("hada_w1_a", "hada_w1_b")),
        ({**LOHA, "hada_w2_b": (2, 7)}, ("hada_w1_a", "hada_w2_a")),
        ({**TUCKER, "hada_w1_a": (3, 6)}, ("hada_w1_a", "hada_t1")),
        ({**TUCKER, "hada_w1_a": (2, 6, 1, 1)}, ("hada_w1_a",)),
        ({**LOKR, "lokr_w1_a": (2, 2)}, ("lokr_w1_a", "lokr_w1_b")),
        ({**LOKR, "lokr_w2_b": (3, 1)}, ("lokr_w2_a", "lokr_w2_b")),
        ({"lokr_w1": (2,), "lokr_w2": (3, 1)}, ("lokr_w1",)),
        ({"lokr_w1": (2, 5, 1, 1), "lokr_w2": (3, 1)}, ("lokr_w1",)),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(shapes, odd) -> None:
    assert misfit(shapes) == odd


def test_a_magnitude_is_one_for_each_input_or_each_output() -> None:
    for weight, good in (((6, 5), [(1, 5), (6, 1)]), ((6, 5, 3, 3), [(1, 5, 1, 1), (6, 1, 1, 1)])):
        assert all(fits_magnitude(shape, weight, flat=False) for shape in good)
        assert not any(fits_magnitude(shape, weight, flat=False) for shape in [(5,), (1, 4), (1, 6), (6, 5)])
    assert fits_magnitude((6,), (6, 5), flat=True) and not fits_magnitude((5,), (6, 5), flat=True)
