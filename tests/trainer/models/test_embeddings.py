import torch

from dreambooth.trainer.models.embeddings import Embeddings, combined, unet_arguments


def made(number: float, *, pooled: bool) -> Embeddings:
    return Embeddings(torch.full((77, 4), number), torch.full((3,), -number) if pooled else None)


def test_what_is_changed_is_both_tensors_and_none_stays_none():
    doubled = made(2, pooled=True).each(lambda tensor: tensor * 2)
    assert doubled.context[0, 0] == 4 and doubled.pooled[0] == -4
    assert made(2, pooled=False).each(lambda tensor: tensor * 2).pooled is None


def test_prompts_are_stacked_and_batches_are_laid_together():
    stacked = combined([made(1, pooled=True), made(2, pooled=True)], torch.stack)
    assert stacked.context.shape == (2, 77, 4) and stacked.pooled.tolist() == [[-1] * 3, [-2] * 3]
    both = combined([stacked, stacked])
    assert both.context.shape == (4, 77, 4) and both.pooled[:, 0].tolist() == [-1, -2, -1, -2]
    assert combined([made(1, pooled=False)], torch.stack).pooled is None


def test_sizes_are_told_only_beside_a_pooled_prompt():
    sizes = torch.zeros(1, 6)
    assert set(unet_arguments(made(1, pooled=False), sizes)) == {"encoder_hidden_states"}
    told = unet_arguments(made(1, pooled=True), sizes)["added_cond_kwargs"]
    assert told["time_ids"] is sizes and torch.equal(told["text_embeds"], torch.full((3,), -1.0))
