import pytest
import torch

from dreambooth.trainer.noise import seeded_normal, to_device


def test_each_row_is_torchs_noise_of_its_own_seed_whatever_stands_beside_it():
    rows = seeded_normal([5, 2**63 + 7, 5], (4, 8, 8))
    assert rows.dtype == torch.float32
    for row, seed in zip(rows, [5, 2**63 + 7, 5], strict=True):
        assert torch.equal(row, torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    assert torch.equal(seeded_normal([5], (4, 8, 8))[0], rows[0])


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    seeded_normal([1, 2], (4, 8, 8))
    assert torch.equal(torch.rand(3), expected)


def test_noise_is_standard_normal():
    noise = seeded_normal(range(100), (4, 8, 8))
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_a_tensor_arrives_on_its_device():
    tensor = torch.arange(4)
    assert torch.equal(to_device(tensor, torch.device("cpu")), tensor)
    assert to_device(tensor, torch.device("meta")).device.type == "meta"
