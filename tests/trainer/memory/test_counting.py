"""What is counted on the meta device is what the same operations ask for on a real one, by closed forms."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dreambooth.trainer.memory.counting import BLOCK, counting


def blocks(*numbers: int, width: int = 4) -> int:
    return sum(-(-number * width // BLOCK) * BLOCK for number in numbers)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_tensor_counts_from_the_operation_that_makes_it_until_nothing_holds_it() -> None:
    with counting() as (count, _):
        one = meta(1000)
        assert count.live == blocks(1000)
        other = one + one
        view = other[:10]
        del other
        assert count.live == 2 * blocks(1000), "a view holds the whole tensor"
        del view, one
    assert count.live == 0 and count.peak == 2 * blocks(1000)


def test_what_a_layer_keeps_for_its_gradients_and_the_gradients_themselves() -> None:
    batch, wide, deep = 64, 512, 4
    with torch.device("meta"):
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(wide, wide, bias=False), nn.SiLU()) for _ in range(deep))
        )
    with counting() as (count, _):
        for parameter in model.parameters():
            count.hold(parameter)
        weights = count.live
        assert weights == deep * blocks(wide * wide)
        loss = model(meta(batch, wide)).sum()
        # each layer keeps its input and what its activation is fed
        assert count.live - weights == blocks(*[batch * wide] * 2 * deep, 1)
        loss.backward()
        del loss
        assert count.live == 2 * weights, "as much again in gradients, and nothing else"


def test_autocast_casts_a_trained_weight_once_and_keeps_it_till_its_end() -> None:
    with torch.device("meta"):
        layer = nn.Linear(256, 256, bias=False)
    with counting(torch.bfloat16) as (count, autocast):
        count.hold(layer.weight)
        before = count.live
        fed = meta(8, 256, dtype=torch.bfloat16)
        with torch.no_grad():
            outputs = [layer(fed) for _ in range(3)]
        assert {output.dtype for output in outputs} == {torch.bfloat16}
        assert count.live - before == blocks(256 * 256, 8 * 256, *[8 * 256] * 3, width=2)
        autocast.end()
        assert count.live - before == blocks(*[8 * 256] * 4, width=2)
        assert functional.layer_norm(fed, (256,)).dtype == torch.float32, (
            "norms work in float32 under autocast"
        )


def test_attention_keeps_no_scores() -> None:
    heads, length, width = 8, 1024, 64
    query = meta(1, heads, length, width).requires_grad_()
    with counting() as (count, _):
        count.hold(query)
        out = functional.scaled_dot_product_attention(query, query, query)
        assert count.live == 2 * blocks(heads * length * width) + blocks(heads * length)
        del out
    assert functional.scaled_dot_product_attention is not None
    real = torch.ones(1, 1, 2, 2)
    assert torch.equal(functional.scaled_dot_product_attention(real, real, real), real), "torch's own is back"


def test_what_is_there_for_each_image_is_told_apart() -> None:
    with counting(images=37) as (count, _):
        weight, activations = meta(1000), meta(37, 10)
        assert count.history[-1] == (blocks(1000) + 37 * 40, 40)
        del activations
        count.note()
        assert count.history[-1] == (blocks(1000), 0)
    assert weight.numel() == 1000


def test_what_autocast_kept_of_some_weights_is_dropped_before_its_end() -> None:
    weights = [meta(256, 256).requires_grad_() for _ in range(2)]
    with counting(torch.bfloat16) as (count, autocast), torch.no_grad():
        for weight in weights:
            count.hold(weight)
            functional.linear(meta(1, 256), weight)
        before = count.live
        autocast.forget(weights[:1])
        assert before - count.live == blocks(256 * 256, width=2)
