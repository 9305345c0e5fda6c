import pytest
import torch

from dreambooth.trainer.data.inpainting import cut_out, latent_mask, random_mask


def test_masks_are_rectangles_and_ellipses_of_all_sizes():
    masks = [random_mask((64, 48), "image", number) for number in range(300)]
    assert all(mask.shape == (1, 48, 64) and mask.dtype == torch.float32 for mask in masks)
    assert {value for mask in masks for value in mask.unique().tolist()} == {0.0, 1.0}
    shares = torch.tensor([mask.mean() for mask in masks])
    assert shares.min() < 0.02 and shares.max() > 0.7
    filled = []
    for mask in masks:
        rows, columns = mask[0].any(1).sum(), mask[0].any(0).sum()
        filled.append((mask.sum() / (rows * columns)).item())
    rectangles = sum(share == 1 for share in filled)
    assert 110 < rectangles < 200
    ellipses = [share for share, mask in zip(filled, masks, strict=True) if share < 1 and mask.sum() > 400]
    assert ellipses and all(share == pytest.approx(torch.pi / 4, abs=0.06) for share in ellipses)


def test_a_mask_depends_on_image_and_number_alone():
    assert torch.equal(random_mask((64, 64), "image", 3), random_mask((64, 64), "image", 3))
    assert not torch.equal(random_mask((64, 64), "image", 3), random_mask((64, 64), "image", 4))
    assert not torch.equal(random_mask((64, 64), "image", 3), random_mask((64, 64), "other", 3))


def test_what_is_cut_out_is_grey_and_the_rest_stays():
    pixels = torch.rand(3, 16, 16) * 2 - 1
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    cut = cut_out(pixels, mask)
    assert cut[:, :8].abs().max() == 0
    assert torch.equal(cut[:, 8:], pixels[:, 8:])


def test_the_latents_mask_is_diffusers_nearest_interpolation():
    shares = []
    for number in range(20):
        mask = random_mask((64, 48), "image", number)
        expected = torch.nn.functional.interpolate(mask[None], size=(6, 8))[0]
        assert torch.equal(latent_mask(mask), expected)
        shares.append(expected.mean().item())
    assert any(0.2 < share < 0.8 for share in shares)
