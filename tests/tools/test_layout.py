from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tools.base import layout, models


@pytest.fixture(scope="module")
def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "unet": models.build_unet(),
        "vae": models.build_vae(),
        "text_encoder": models.build_text_encoder(),
    }


def test_the_schedule_is_sd1s() -> None:
    buffers = layout.schedule()
    assert buffers["betas"][0].item() == pytest.approx(0.00085)
    assert buffers["betas"][-1].item() == pytest.approx(0.012)
    # The published file's last value: the signal that is left at the noisiest step.
    assert buffers["alphas_cumprod"][-1].item() == pytest.approx(0.0047, abs=5e-5)
    product = buffers["sqrt_recip_alphas_cumprod"] ** 2 - buffers["sqrt_recipm1_alphas_cumprod"] ** 2
    assert torch.allclose(product, torch.ones(1000), atol=1e-4)
    assert all(buffer.dtype == torch.float32 for buffer in buffers.values())


def test_a_file_is_sd1_in_half_precision_and_says_where_it_comes_from(tmp_path: Path, modules) -> None:
    layout.write(tmp_path / "tiny.safetensors", modules)
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        assert "scikit-image" in file.metadata()["modelspec.license"]
        query = file.get_tensor("first_stage_model.encoder.mid.attn_1.q.weight")
        assert (query.dtype, query.shape) == (torch.float16, (64, 64, 1, 1))
        first = file.get_tensor("model.diffusion_model.input_blocks.0.0.weight")
        assert torch.equal(first, modules["unet"].conv_in.weight.half())
        positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        assert file.get_tensor(positions).tolist() == [list(range(77))]
        assert file.get_tensor("alphas_cumprod").dtype == torch.float32


def test_a_weight_without_a_place_is_refused(modules) -> None:
    odd = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weight"):
        layout.tensors({**modules, "vae": odd})
