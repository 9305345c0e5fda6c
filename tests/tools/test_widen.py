from __future__ import annotations

import torch

from tools.base import models, widen


def test_a_widened_vae_draws_what_the_narrow_one_drew() -> None:
    torch.manual_seed(0)
    narrow = models.build_vae(models.NARROW_VAE_WIDTHS).eval()
    weights = dict(narrow.named_parameters())
    with torch.no_grad():  # the two paths that widening lets start from nothing
        for block in (widen.ENCODER_TURN, widen.DECODER_TURN):
            weights[f"{block}.conv2.weight"].zero_()
    wide = widen.widen(narrow, seed=3).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(wide(images).sample, narrow(images).sample, atol=1e-4, rtol=1e-3)


def test_the_copies_of_a_channel_are_used_differently_so_that_they_can_part() -> None:
    narrow = models.build_vae(models.NARROW_VAE_WIDTHS)
    weight = widen.widen(narrow, seed=3).decoder.conv_out.weight
    assert not torch.allclose(weight[:, 0::2], weight[:, 1::2], rtol=1e-2)
