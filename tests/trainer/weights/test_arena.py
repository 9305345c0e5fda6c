import io

import torch

from dreambooth.trainer.weights import arena
from dreambooth.trainer.weights.arena import Arena

WANTED = [(torch.float16, (3, 5)), (torch.float32, (1 << 22,)), (torch.int64, ()), (torch.float32, (0, 4))]


def test_tensors_of_an_arena_do_not_overlap_and_are_aligned():
    memory = Arena(WANTED)
    found = [memory.tensor(dtype, shape).fill_(index) for index, (dtype, shape) in enumerate(WANTED)]
    for index, (tensor, (dtype, shape)) in enumerate(zip(found, WANTED, strict=True)):
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
        assert bool((tensor == index).all()) and tensor.data_ptr() % 64 == 0


def test_each_has_a_storage_of_its_own_size_and_is_saved_alone():
    memory = Arena(WANTED)
    small = memory.tensor(*WANTED[0]).zero_()
    memory.tensor(*WANTED[1])
    assert small.untyped_storage().nbytes() == 30
    saved = io.BytesIO()
    torch.save(small, saved)
    assert len(saved.getvalue()) < 10_000


def test_a_tensor_outlives_its_arena():
    tensor = Arena(WANTED).tensor(*WANTED[1]).fill_(7)
    assert bool((tensor == 7).all())


def test_without_huge_pages_every_tensor_has_memory_of_its_own(monkeypatch):
    monkeypatch.delattr(arena.mmap, "MADV_HUGEPAGE", raising=False)
    memory = Arena(WANTED)
    assert bool((memory.tensor(*WANTED[1]).fill_(3) == 3).all())


def test_more_than_was_asked_for_is_still_given():
    memory = Arena(WANTED[1:2])
    one, other = memory.tensor(*WANTED[1]).fill_(1), memory.tensor(*WANTED[1]).fill_(2)
    assert bool((one == 1).all()) and bool((other == 2).all())
