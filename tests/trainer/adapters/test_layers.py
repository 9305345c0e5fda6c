"""What is trained equals what kohya's convention makes of the written file."""

from __future__ import annotations

import copy

import kohya
import models
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dreambooth.trainer.adapters import layers
from dreambooth.trainer.adapters.kinds import KINDS, beginning, scale_of
from dreambooth.trainer.adapters.layers import Adapted, Switch

FAMILIES = ("sd1", "sd1-inpaint", "sd2", "sd2-inpaint", "sdxl")
RESULTS = {name: kind.result for name, kind in KINDS.items()}
ROLES = ("attention", "feed_forward", "projections", "convolutions", "embeddings")
BASES = {
    "linear": lambda: nn.Linear(48, 64),
    "linear without bias": lambda: nn.Linear(48, 40, bias=False),
    "convolution": lambda: nn.Conv2d(24, 32, 3, 2, 1),
    "convolution of one pixel": lambda: nn.Conv2d(24, 32, 1),
}


def agrees(folder, family, **values):
    """The prediction of the model in training, and that of the base with the file applied by kohya's convention."""
    model, path = models.trained(folder, family, **values)
    merged, ignored = kohya.applied(models.weights(family), load_file(path))
    assert ignored == [], "the WebUI would pass over these"
    ours, theirs = models.prediction(model), models.prediction(models.reloaded(folder, family, merged))
    assert float((ours - models.plain(family)).abs().max()) > 1e-2, "the adapter changes the prediction"
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_in_training_predicts_what_base_and_file_predict_by_kohyas_convention(
    tmp_path, family, kind
):
    found = agrees(
        tmp_path, family, adapter=kind, output_kind=RESULTS[kind], target_blocks="all", lora_alpha=3
    )
    assert found < 1e-4


@pytest.mark.parametrize("role", ROLES)
def test_each_role_alone_is_enough(tmp_path, role):
    # text encoders have none but the first two
    chosen = role if role in ROLES[:2] else f"{role}, attention"
    assert agrees(tmp_path, "sd1", target_blocks=chosen) < 1e-4


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("rank", (2, 12))
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_gives_what_the_merged_weight_gives_and_begins_as_its_base(kind, rank, name):
    torch.manual_seed(0)
    base, row = BASES[name](), KINDS[kind]
    shapes = row.shapes(tuple(base.weight.shape), rank)
    start = {part: beginning(row.starts[part], shape, base, 3) for part, shape in shapes.items()}
    layer = Adapted(base, kind, start, scale_of(shapes, 8.0))
    x = torch.randn(3, 5, 48) if base.weight.dim() == 2 else torch.randn(3, 24, 9, 9)
    torch.testing.assert_close(layer(x), base(x), atol=1e-6, rtol=0)
    with torch.no_grad():
        for parameter in layer.tensors.values():
            parameter += 0.1 * torch.randn_like(parameter)
        merged = copy.deepcopy(base)
        merged.weight.copy_(row.merged(base.weight, layer.tensors, scale_of(shapes, 8.0)))
    torch.testing.assert_close(layer(x), merged(x), atol=1e-5, rtol=1e-5)


def test_lohas_gradient_is_that_of_the_plain_formula():
    torch.manual_seed(0)
    factors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 2), (2, 4)) * 2]
    assert torch.autograd.gradcheck(layers._Hadamard.apply, factors)


def test_the_gradient_of_lora_is_that_of_the_merged_weight():
    torch.manual_seed(0)
    base = nn.Linear(12, 10).requires_grad_(False)
    tensors = {"lora_down.weight": torch.randn(3, 12), "lora_up.weight": torch.randn(10, 3)}
    layer, x = Adapted(base, "lora", tensors, 0.5), torch.randn(4, 12)
    layer(x).pow(2).sum().backward()
    held = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    weight = base.weight + 0.5 * held["lora_up.weight"] @ held["lora_down.weight"]
    nn.functional.linear(x, weight, base.bias).pow(2).sum().backward()
    for name, parameter in layer.tensors.items():
        torch.testing.assert_close(parameter.grad, held[name].grad)
    assert base.weight.grad is None


def test_a_switch_turns_every_layer_off_and_on_again():
    switch = Switch()
    layer = Adapted(nn.Linear(4, 4), "lora", {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(4, 1)},
                    1.0, switch=switch)  # fmt: skip
    x = torch.ones(1, 4)
    with switch.off():
        assert torch.equal(layer(x), layer.base(x))
    torch.testing.assert_close(layer(x), layer.base(x) + 4)


def test_dropout_leaves_parts_of_the_input_out_while_it_trains_only():
    tensors = {"lora_down.weight": torch.ones(1, 4000), "lora_up.weight": torch.ones(1, 1)}
    layer = Adapted(nn.Linear(4000, 1).double(), "lora", tensors, 1.0, dropout=0.5)
    x = torch.ones(1, 4000).double()
    torch.manual_seed(2)
    added = [round(float((layer(x) - layer.base(x)).detach()), 3) for _ in range(3)]
    assert len(set(added)) == 3 and all(3700 < number < 4300 and number % 2 == 0 for number in added)
    assert float((layer.eval()(x) - layer.base(x)).detach()) == pytest.approx(4000)


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_in_a_narrower_precision_with_and_without_autocast(kind):
    torch.manual_seed(0)
    base = nn.Linear(16, 16).to(torch.bfloat16)
    row = KINDS[kind]
    shapes = row.shapes((16, 16), 2)
    start = {part: beginning(row.starts[part], shape, base, 3) for part, shape in shapes.items()}
    layer = Adapted(base, kind, start, 1.0)
    x = torch.randn(2, 16)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.tensors.values())
