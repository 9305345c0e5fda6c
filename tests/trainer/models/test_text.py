from __future__ import annotations

import pytest
import torch

from dreambooth.trainer.families import FAMILIES
from dreambooth.trainer.models.text import (
    count_chunks,
    encode,
    split_prompt,
    tokenize,
    tokens_cut,
    unused_modules,
)
from dreambooth.trainer.models.tokenizer import default_tokenizer

SD1, SD2, SDXL = (FAMILIES[name] for name in ("sd1", "sd2", "sdxl"))
DOG, COMMA, START, END = 1929, 267, 49406, 49407


@pytest.fixture(scope="module")
def tokenizer():
    return default_tokenizer()


@pytest.fixture
def text_encoder():
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=49408
    )
    return CLIPTextModel(config).eval()


def dogs(count):
    return " ".join(["dog"] * count)


def by_hand(text_encoder, ids, layers):
    """CLIP's text transformer from its definition: pre-norm blocks, causal attention, final norm."""
    model = getattr(text_encoder, "text_model", text_encoder)
    position = torch.arange(ids.shape[1])
    x = model.embeddings.token_embedding(ids) + model.embeddings.position_embedding(position)
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    for layer in list(model.encoder.layers)[:layers]:
        y, attention = layer.layer_norm1(x), layer.self_attn
        query, key, value = (
            projection(y).unflatten(-1, (2, 16)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = (query @ key.transpose(-1, -2) / 16**0.5 + mask).softmax(-1)
        x = x + attention.out_proj((scores @ value).transpose(1, 2).flatten(2))
        y = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(y * torch.sigmoid(1.702 * y))
    return model.final_layer_norm(x)


def test_a_short_prompt_is_one_chunk_framed_and_padded_as_its_family_pads(tokenizer):
    first = tokenize(tokenizer, SD1, ["photo of a sks dog"])
    second = tokenize(tokenizer, SD2, ["photo of a sks dog"])
    framed = [49406, 1125, 539, 320, 48136, 1929, 49407]
    assert first.dtype == torch.int64
    assert first.tolist() == [[framed + [END] * 70]]
    assert second.tolist() == [[framed + [0] * 70]]


def test_an_empty_prompt_is_one_empty_chunk(tokenizer):
    assert split_prompt(tokenizer, "") == [[]]
    assert tokenize(tokenizer, SD1, [""]).tolist() == [[[START] + [END] * 76]]
    assert tokenize(tokenizer, SD2, [""]).tolist() == [[[START, END] + [0] * 75]]


def test_the_76th_token_opens_a_second_chunk(tokenizer):
    assert split_prompt(tokenizer, dogs(75)) == [[DOG] * 75]
    assert split_prompt(tokenizer, dogs(76)) == [[DOG] * 75, [DOG]]
    assert tokenize(tokenizer, SD1, [dogs(76)])[0, 0].tolist() == [START, *[DOG] * 75, END]


@pytest.mark.parametrize(
    ("before", "after", "sizes"),
    [
        (60, 30, [61, 30]),  # 14 tokens follow the comma in the full chunk: all go with it to the next
        (55, 30, [56, 30]),  # 19 follow: the farthest comma that still counts
        (54, 30, [75, 10]),  # 20 follow: too far back, the chunk is cut where it is full
        (74, 30, [75, 30]),  # the comma is the last token of a full chunk
        (75, 30, [75, 31]),  # the comma itself opens the next chunk
        (10, 64, [75]),  # the prompt ends with the chunk: nothing to move
    ],
)
def test_a_full_chunk_ends_after_a_near_comma(tokenizer, before, after, sizes):
    chunks = split_prompt(tokenizer, f"{dogs(before)}, {dogs(after)}")
    assert [len(chunk) for chunk in chunks] == sizes
    assert [token for chunk in chunks for token in chunk] == [DOG] * before + [COMMA] + [DOG] * after


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("dog BREAK cat", [[DOG], [2368]]),
        ("dog  BREAK\ncat BREAK", [[DOG], [2368]]),
        ("BREAK dog", [[], [DOG]]),
        ("dog BREAK BREAK cat", [[DOG], [], [2368]]),
        ("BREAK", [[]]),
        (f"{dogs(75)} BREAK cat", [[DOG] * 75, [2368]]),
        ("dog break BREAKFAST", [[DOG, 2568, 3290]]),
    ],
)
def test_break_ends_a_chunk_as_in_the_webui(tokenizer, prompt, expected):
    assert split_prompt(tokenizer, prompt) == expected


def test_brackets_and_weights_are_text(tokenizer):
    assert split_prompt(tokenizer, "(sks:1.2) dog") == [tokenizer("(sks:1.2) dog")]


def test_a_prompt_beyond_the_most_chunks_is_cut_and_its_loss_is_counted(tokenizer):
    prompt = dogs(75 * 3 + 7)
    assert count_chunks(tokenizer, prompt) == 4
    assert tokenize(tokenizer, SD1, [prompt], max_chunks=2).shape == (1, 2, 77)
    assert tokens_cut(tokenizer, prompt, 3) == 7
    assert tokens_cut(tokenizer, prompt, 4) == 0


def test_prompts_of_one_batch_are_filled_up_with_empty_chunks(tokenizer):
    ids = tokenize(tokenizer, SD2, [dogs(80), "dog"])
    assert ids.shape == (2, 2, 77)
    assert torch.equal(ids[1, 1], tokenize(tokenizer, SD2, [""])[0, 0])
    assert tokenize(tokenizer, SD1, ["dog"], chunks=3).shape == (1, 3, 77)


@pytest.mark.parametrize(
    ("rules", "clip_skip", "layers"), [(SD1, 1, 3), (SD1, 2, 2), (SD1, 3, 1), (SD2, 2, 3)]
)
def test_the_encoding_equals_the_definition_at_every_clip_skip(
    tokenizer, text_encoder, rules, clip_skip, layers
):
    ids = tokenize(tokenizer, rules, ["a dog", dogs(80)])
    with torch.no_grad():
        found = encode([text_encoder], rules, ids, clip_skip=clip_skip).context
        expected = [
            torch.cat([by_hand(text_encoder, chunk[None], layers)[0] for chunk in row]) for row in ids
        ]
    assert found.shape == (2, 2 * 77, 32)
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-6, rtol=1e-5)


def test_the_skipped_layers_are_those_that_get_no_gradient(tokenizer, text_encoder):
    ids = tokenize(tokenizer, SD1, ["a dog"])
    encode([text_encoder], SD1, ids, clip_skip=2).context.square().sum().backward()
    model = getattr(text_encoder, "text_model", text_encoder)
    without = [layer for layer in model.encoder.layers if layer.mlp.fc1.weight.grad is None]
    assert without == unused_modules([text_encoder], SD1, 2) == [model.encoder.layers[2]]
    assert unused_modules([text_encoder], SD1, 1) == unused_modules([text_encoder], SD2, 2) == []


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_gradient_checkpointing_changes_no_gradient(tokenizer, text_encoder, clip_skip):
    ids = tokenize(tokenizer, SD1, ["a dog", dogs(80)])

    def gradient():
        text_encoder.zero_grad()
        encode([text_encoder], SD1, ids, clip_skip=clip_skip).context.square().sum().backward()
        return {
            name: value.grad.clone()
            for name, value in text_encoder.named_parameters()
            if value.grad is not None
        }

    text_encoder.train()
    plain = gradient()
    text_encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradient()
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        assert torch.equal(value, checkpointed[name]), name


def test_autocast_on_a_cpu_leaves_the_encoder_in_float32(tokenizer, text_encoder):
    ids = tokenize(tokenizer, SD1, ["a dog"])
    with torch.no_grad():
        full = encode([text_encoder], SD1, ids).context
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encode([text_encoder], SD1, ids).context, full)


@pytest.mark.gpu
def test_autocast_on_a_card_stays_near_full_precision(tokenizer, text_encoder):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
    ids = tokenize(tokenizer, SD1, ["a dog"]).cuda()
    with torch.no_grad():
        full = encode([text_encoder.cuda()], SD1, ids).context
        with torch.autocast("cuda", torch.float16):
            half = encode([text_encoder], SD1, ids).context
    assert 0 < (full - half.float()).abs().max() < 0.1
