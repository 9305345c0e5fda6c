import sys
from dataclasses import replace

import pytest
import torch
from checkpoints import same, write
from ldm_layout import SMALL_SD1, SMALL_SD2, SMALL_SDXL, TINY_SD1, TINY_SD2, TINY_SDXL, tensors

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families.names import ema_name
from dreambooth.trainer.models.convert import canonical_state, convert, load_model
from dreambooth.trainer.models.loading import check_shapes, understand, wrong_shapes
from dreambooth.trainer.models.sources import open_model
from dreambooth.trainer.weights import open_weights
from dreambooth.trainer.weights.safetensors_file import SafetensorsFile

UNET = "model.diffusion_model."
OPENCLIP = "cond_stage_model.model."
IDS = torch.tensor([[298, 5, 17, 60, *[299] * 73]])
SMALLER = replace(SMALL_SD1, blocks=1, text_layers=1)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sd1") / "sd1.safetensors", tensors(SMALL_SD1))


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sd2") / "sd2.safetensors", tensors(SMALL_SD2))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors", tensors(SMALL_SDXL))


def states(model):
    return {component: canonical_state(component, module) for component, module in model.components.items()}


def test_modules_are_frozen_in_eval_mode_and_of_the_dtype_asked_for(sd1):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load_model(sd1, dtype=dtype)
        assert list(model.components) == ["unet", "text_encoder", "vae"]
        for module in model.components.values():
            assert not module.training and {parameter.dtype for parameter in module.parameters()} == {dtype}
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}


def test_only_the_components_that_are_named_are_loaded(sd1):
    model = load_model(sd1, components=("vae",))
    assert list(model.components) == ["vae"] and set(model.configs) == {"unet", "text_encoder", "vae"}


def test_the_state_has_names_that_no_version_of_transformers_decides(sd1):
    names = canonical_state(
        "text_encoder", load_model(sd1, components=("text_encoder",)).components["text_encoder"]
    )
    assert "embeddings.token_embedding.weight" in names
    assert not any("text_model" in name or "position_ids" in name for name in names)


def test_the_state_shares_its_memory_with_the_module(sd1):
    unet = load_model(sd1, components=("unet",)).components["unet"]
    canonical_state("unet", unet)["conv_in.bias"].fill_(7)
    assert bool((unet.conv_in.bias == 7).all())


def from_diffusers(path, folder):
    """diffusers' own reading of a single file, with the configs of a folder of the same sizes."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    kind = StableDiffusionXLPipeline if path.stem == "sdxl" else StableDiffusionPipeline
    return kind.from_single_file(path, config=str(folder), local_files_only=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_diffusers_reads_the_same_weights_and_the_models_say_the_same(name, request, tmp_path):
    path = request.getfixturevalue(name)
    convert(path, tmp_path / "folder", prediction_type="epsilon")
    theirs, ours = from_diffusers(path, tmp_path / "folder"), load_model(path, prediction_type="epsilon")
    texts = {"sd1": ["text_encoder"], "sd2": [], "sdxl": ["text_encoder", "text_encoder_2"]}[name]
    for component in ["unet", "vae", *texts]:
        expected = canonical_state(component, getattr(theirs, component))
        found = canonical_state(component, ours.components[component])
        assert found.keys() == expected.keys()
        assert all(same(found[key], expected[key].float()) for key in expected)
    latents, context = (
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 77, ours.configs["unet"]["cross_attention_dim"]),
    )
    sizes = torch.tensor([[100.0, 200.0, 3.0, 0.0, 64.0, 64.0]])
    told = {"text_embeds": torch.randn(1, SMALL_SDXL.second_width), "time_ids": sizes}
    with torch.no_grad():
        expected = theirs.unet.float()(latents, 500, context, added_cond_kwargs=told).sample
        found = ours.components["unet"](latents, 500, context, added_cond_kwargs=told).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        images = theirs.vae.float().decode(latents).sample
        torch.testing.assert_close(
            ours.components["vae"].decode(latents).sample, images, rtol=1e-4, atol=1e-5
        )


def openclip(weights, ids, heads, layers, prefix=OPENCLIP):
    """OpenCLIP's text transformer up to a layer, before and after the final norm, with torch's own attention."""
    width = weights[f"{prefix}token_embedding.weight"].shape[1]
    hidden = weights[f"{prefix}token_embedding.weight"][ids] + weights[f"{prefix}positional_embedding"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    functional = torch.nn.functional
    for layer in range(layers):
        own = {
            name.removeprefix(f"{prefix}transformer.resblocks.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"{prefix}transformer.resblocks.{layer}.")
        }
        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        attention.load_state_dict({name[5:]: own[name] for name in own if name.startswith("attn.")})
        normed = functional.layer_norm(hidden, (width,), own["ln_1.weight"], own["ln_1.bias"])
        hidden = hidden + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        normed = functional.layer_norm(hidden, (width,), own["ln_2.weight"], own["ln_2.bias"])
        inner = functional.gelu(functional.linear(normed, own["mlp.c_fc.weight"], own["mlp.c_fc.bias"]))
        hidden = hidden + functional.linear(inner, own["mlp.c_proj.weight"], own["mlp.c_proj.bias"])
    final = weights[f"{prefix}ln_final.weight"], weights[f"{prefix}ln_final.bias"]
    return hidden, functional.layer_norm(hidden, (width,), *final)


def test_the_second_generations_text_encoder_gives_openclips_penultimate_layer(sd2):
    encoder = load_model(sd2, components=("text_encoder",), prediction_type="epsilon").components[
        "text_encoder"
    ]
    with torch.no_grad():
        found = encoder(input_ids=IDS).last_hidden_state
        _, expected = openclip(tensors(SMALL_SD2), IDS, SMALL_SD2.context // 64, SMALL_SD2.text_layers - 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sdxls_second_text_encoder_gives_openclips_penultimate_states_and_its_pooled_end(sdxl):
    """Pooled as OpenCLIP does it: the last layer's normed state at the end token, times the bare matrix."""
    encoder = load_model(sdxl, components=("text_encoder_2",)).components["text_encoder_2"]
    weights, prefix, layers = tensors(SMALL_SDXL), "conditioner.embedders.1.model.", SMALL_SDXL.second_layers
    with torch.no_grad():
        found = encoder(input_ids=IDS, output_hidden_states=True)
        penultimate, _ = openclip(weights, IDS, 1, layers - 1, prefix)
        _, last = openclip(weights, IDS, 1, layers, prefix)
        pooled = last[:, int(IDS[0].argmax())] @ weights[f"{prefix}text_projection"]
    torch.testing.assert_close(found.hidden_states[-2], penultimate, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.text_embeds, pooled, rtol=1e-5, atol=1e-5)


def test_the_vae_of_sdxl_is_float32_unless_another_is_named(sdxl):
    def dtypes(model):
        return {name: next(module.parameters()).dtype for name, module in model.components.items()}

    half = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), torch.float16)
    assert dtypes(load_model(sdxl, dtype=torch.float16)) == {**half, "vae": torch.float32}
    named = load_model(sdxl, dtype=torch.float16, vae=sdxl)
    assert dtypes(named) == {**half, "vae": torch.float16}


def test_old_names_of_the_text_encoder_load_the_same(sd1, tmp_path):
    old = {
        name.replace("transformer.text_model.", "transformer."): value
        for name, value in tensors(SMALL_SD1).items()
    }
    path = write(tmp_path / "old.ckpt", old)
    expected = states(load_model(sd1, components=("text_encoder",)))
    found = states(load_model(path, components=("text_encoder",)))
    assert all(same(found["text_encoder"][name], value) for name, value in expected["text_encoder"].items())


def test_attention_of_the_vae_may_be_linear_in_the_file(sd1, tmp_path):
    linear = {
        name: value[:, :, 0, 0].contiguous() if ".mid.attn_1." in name and value.dim() == 4 else value
        for name, value in tensors(SMALL_SD1).items()
    }
    path = write(tmp_path / "linear.safetensors", linear)
    expected, found = (states(load_model(place, components=("vae",)))["vae"] for place in (sd1, path))
    assert all(same(found[name], value) for name, value in expected.items())


def with_averages(weights):
    return (
        weights
        | {ema_name(name): value + 1 for name, value in weights.items() if name.startswith(UNET)}
        | {
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
        }
    )


def test_the_averaged_weights_are_taken_on_request(tmp_path):
    weights = tensors(SMALLER)
    path = write(tmp_path / "ema.safetensors", with_averages(weights))
    own = states(load_model(path, components=("unet",)))["unet"]
    averaged = states(load_model(path, components=("unet",), use_ema_weights=True))["unet"]
    assert all(torch.equal(averaged[name], value + 1) for name, value in own.items())


def test_averaged_weights_that_are_not_there_are_an_error(sd1, tmp_path):
    with pytest.raises(InputError, match="no averaged") as caught:
        load_model(sd1, use_ema_weights=True)
    assert caught.value.where == str(sd1) and "use_ema_weights" in caught.value.remedy
    weights = with_averages(tensors(SMALLER))
    del weights[ema_name(UNET + "out.0.bias")]
    with pytest.raises(InputError, match="lack model_ema"):
        load_model(write(tmp_path / "partly.safetensors", weights), use_ema_weights=True)


def test_another_vae_is_used_from_a_file_a_checkpoint_or_a_folder(sd1, tmp_path):
    other = replace(SMALL_SD1, vae_multiples=(1, 2))
    weights = tensors(other, seed=5)
    own = {
        name.removeprefix("first_stage_model."): value
        for name, value in weights.items()
        if "first_stage" in name
    }
    alone = write(tmp_path / "vae.safetensors", {**own, "loss.logvar": torch.zeros(())})
    checkpoint = write(tmp_path / "other.safetensors", weights)
    convert(checkpoint, tmp_path / "folder")
    expected = states(load_model(checkpoint, components=("vae",)))["vae"]
    for vae in (alone, checkpoint, tmp_path / "folder", tmp_path / "folder" / "vae"):
        model = load_model(sd1, components=("vae",), vae=vae)
        found = states(model)["vae"]
        assert found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
        assert model.source.path == sd1


def test_a_vae_whose_latents_are_scaled_as_another_family_s_is_refused(sd1, sd2, sdxl, tmp_path):
    convert(sd2, tmp_path / "folder", prediction_type="epsilon")
    for vae, source in (
        (sd2, "Stable Diffusion 2.x"),
        (tmp_path / "folder", "a diffusers folder"),
        (tmp_path / "folder" / "vae", "a diffusers folder"),
    ):
        with pytest.raises(InputError) as caught:
            load_model(sdxl, components=("vae",), vae=vae)
        assert caught.value.what == (
            f"this VAE is from {source}, whose latents are scaled by 0.18215, and those of Stable Diffusion XL by 0.13025"
        )
        assert caught.value.where == str(vae) and caught.value.remedy
        assert load_model(sd1, components=("vae",), vae=vae).components.keys() == {"vae"}, "the same scale"
    convert(sdxl, tmp_path / "large")
    assert load_model(sdxl, components=("vae",), vae=tmp_path / "large").components.keys() == {"vae"}


def test_a_file_that_is_no_vae_is_refused(sd1, tmp_path):
    path = write(tmp_path / "x.safetensors", {"fc.weight": torch.ones(2)})
    with pytest.raises(InputError, match="no VAE"):
        load_model(sd1, vae=path)
    with pytest.raises(InputError, match="no such model file"):
        load_model(sd1, vae=tmp_path / "nothing.safetensors")


def test_a_shape_that_does_not_fit_is_named(tmp_path):
    weights = tensors(SMALLER)
    weights[UNET + "out.0.bias"] = torch.zeros(5)
    with pytest.raises(InputError, match=r"out\.0\.bias' has the shape \(5,\), not \(32,\)"):
        load_model(write(tmp_path / "a.safetensors", weights))


@pytest.mark.parametrize("sizes", [TINY_SD1, TINY_SD2, TINY_SDXL])
def test_every_tensor_s_shape_is_checked_without_reading_one(sizes, tmp_path, monkeypatch):
    weights = tensors(sizes)
    opened, description = understand(open_model(write(tmp_path / "whole.safetensors", weights)), "epsilon")
    monkeypatch.setattr(SafetensorsFile, "raw", None)
    assert wrong_shapes(opened, description) == {}
    whole = {}
    for ending in ("attn1.to_q.weight", "out.2.bias", "decoder.conv_in.weight", "token_embedding.weight"):
        name = next(name for name in reversed(weights) if name.endswith(ending))
        whole[name] = tuple(weights[name].shape)
        weights[name] = weights[name].narrow(-1, 0, whole[name][-1] - 1).contiguous()
    cut = open_model(write(tmp_path / "cut.safetensors", weights)).weights
    assert wrong_shapes(cut, description) == whole
    with pytest.raises(InputError, match="has the shape") as caught:
        check_shapes(cut, description)
    assert caught.value.what.startswith(repr(next(iter(wrong_shapes(cut, description)))))
    assert caught.value.where == str(cut.path)


def test_missing_tensors_are_named_before_anything_is_built(tmp_path):
    weights = tensors(SMALLER)
    del weights[UNET + "out.0.bias"]
    with pytest.raises(InputError, match=r"a tensor of its UNet is missing, .*out\.0\.bias"):
        load_model(write(tmp_path / "a.safetensors", weights))


def test_the_unet_of_the_second_generation_is_run_only_when_nothing_else_tells(sd2, tmp_path):
    found = load_model(sd2, components=()).identified
    assert found.prediction_type == "epsilon" and "last timestep" in found.told_by
    weights = tensors(SMALL_SD2)
    weights[UNET + "out.2.bias"] -= 10
    path = write(tmp_path / "v.safetensors", weights)
    assert load_model(path, components=()).identified.prediction_type == "v_prediction"
    assert load_model(path, components=(), prediction_type="epsilon").identified.prediction_type == "epsilon"


def test_heads_of_a_yaml_beside_the_file_are_used(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(SMALLER))
    config = (
        "model: {params: {parameterization: v, cond_stage_config: {}, unet_config: {params: {num_heads: 4}}}}"
    )
    (tmp_path / "a.yaml").write_text(config)
    model = load_model(path, components=("unet",))
    assert model.configs["unet"]["attention_head_dim"] == 4
    assert model.identified.prediction_type == "v_prediction" and "a.yaml" in model.identified.told_by


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_mapped_weights_are_the_same_and_the_file_never_changes(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", tensors(SMALLER))
    before = path.read_bytes()
    read, mapped = load_model(path), load_model(path, mapped=True)
    for component, state in states(read).items():
        found = canonical_state(component, mapped.components[component])
        assert all(same(found[name], value) for name, value in state.items())
    with torch.no_grad():
        mapped.components["unet"].conv_in.weight.zero_()
    assert path.read_bytes() == before
    assert bool(mapped.components["unet"].conv_in.weight.eq(0).all())


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is mapped there")
def test_only_weights_that_need_no_cast_are_mapped(sd1):
    found = open_weights(sd1)
    name = UNET + "out.2.weight"
    assert same(found.mapped(name), found.read(name))
    half = load_model(sd1, dtype=torch.float16, components=("unet",), mapped=True).components["unet"]
    assert half.conv_out.weight.dtype == torch.float16
