from __future__ import annotations

import pytest
import torch

from dreambooth.trainer.models.clip_text import CLIPTextEncoder

CONFIG = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
IDS = torch.arange(2 * 77).reshape(2, 77) % 100


def encoder(**changes):
    torch.manual_seed(0)
    return CLIPTextEncoder({**CONFIG, **changes}).requires_grad_(True)


def libraries_own(ours, config):
    """transformers' module with the same weights, whatever it calls them."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    module = CLIPTextModel(CLIPTextConfig(**config, bos_token_id=98, eos_token_id=99, pad_token_id=1))
    prefix = "text_model." if hasattr(module, "text_model") else ""
    module.load_state_dict({prefix + name: value for name, value in ours.state_dict().items()}, strict=True)
    return module


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_it_computes_what_transformers_module_computes_with_the_same_weights(activation):
    ours = encoder(hidden_act=activation)
    theirs = libraries_own(ours, {**CONFIG, "hidden_act": activation})
    ids = IDS[:, :20]
    one = ours(input_ids=ids, output_hidden_states=True)
    other = theirs(input_ids=ids, output_hidden_states=True, return_dict=True)
    torch.testing.assert_close(one.last_hidden_state, other.last_hidden_state)
    assert len(one.hidden_states) == 4
    # the newest transformers gives the last state normed, older ones as the layer left it
    for mine, its in zip(one.hidden_states[:-1], other.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, its)


def test_its_gradients_are_those_of_transformers_module():
    ours = encoder()
    theirs = libraries_own(ours, CONFIG)
    weighting = torch.randn(2, 77, 32)
    for module in (ours, theirs):
        (module(input_ids=IDS).last_hidden_state * weighting).sum().backward()
    others = {name.removeprefix("text_model."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        rounding = 1e-6 * float(others[name].abs().amax()) + 1e-5
        torch.testing.assert_close(parameter.grad, others[name], msg=name, rtol=1e-4, atol=rounding)


def test_a_token_does_not_see_those_behind_it():
    ours, changed = encoder(), IDS.clone()
    changed[:, 10:] = 7
    one, other = (ours(input_ids=ids).last_hidden_state for ids in (IDS, changed))
    torch.testing.assert_close(one[:, :10], other[:, :10])
    assert (one[:, 10:] - other[:, 10:]).abs().amax() > 0.01


def test_the_norm_is_the_only_difference_between_the_last_state_and_the_result():
    encoded = encoder()(input_ids=IDS, output_hidden_states=True)
    normed = torch.nn.functional.layer_norm(encoded.hidden_states[-1], (32,))
    torch.testing.assert_close(encoded.last_hidden_state, normed)


def test_checkpointing_changes_the_memory_and_not_the_gradients():
    plain, saving = encoder().train(), encoder().train()
    saving.gradient_checkpointing_enable()
    kept = []
    for module in (plain, saving):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t
        ):
            loss = module(input_ids=IDS).last_hidden_state.square().sum()
        loss.backward()
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
