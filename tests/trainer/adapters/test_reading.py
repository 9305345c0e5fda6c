"""Files of other programs: the same numbers under diffusers' and peft's names make the same model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import kohya
import models
import pytest
import tiny
import torch
from checkpoints import write
from PIL import Image
from safetensors.torch import load_file

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters import reading
from dreambooth.trainer.adapters.forms import made_shape
from dreambooth.trainer.adapters.merging import Request, parse_request
from dreambooth.trainer.adapters.reading import bind, open_adapter
from dreambooth.trainer.adapters.summary import summarize
from dreambooth.trainer.adapters.targets import targets_of
from dreambooth.trainer.models.convert import convert, load_model
from dreambooth.trainer.models.inspection import inspect
from dreambooth.trainer.sampling import generate as drawing

UP, DOWN = "lora_up.weight", "lora_down.weight"


def diffusers_new(component: str, path: str, up: bool) -> str:
    return f"{component}.{'text_model.' * (component != 'unet')}{path}.lora_{'B' if up else 'A'}.weight"


def peft(component: str, path: str, up: bool) -> str:
    return f"base_model.model.{'text_model.' * (component != 'unet')}{path}.lora_{'B' if up else 'A'}.weight"


def diffusers_old(component: str, path: str, up: bool) -> str:
    way = "up" if up else "down"
    if component != "unet":
        return f"{component}.text_model.{path}.lora_linear_layer.{way}.weight"
    processor = re.fullmatch(r"(.+\.attn\d)\.to_(q|k|v|out)(\.0)?", path)
    if processor:
        return f"unet.{processor[1]}.processor.to_{processor[2]}_lora.{way}.weight"
    return f"unet.{path}.lora.{way}.weight"


def renamed(folder: Path, name: Callable[[str, str, bool], str], family: str = "sd1", **values: object):
    """An adapter's file, and its numbers under other names with alpha = rank."""
    model, path = models.trained(folder, family, lora_alpha=4, **values)
    plan = models.planned(model, lora_alpha=4, **values)
    held = load_file(path)
    found = {}
    from dreambooth.trainer.adapters.names import kohya_name

    for layer in plan.layers:
        own = kohya_name(model.identified.family, layer.target)
        for part, up in ((UP, True), (DOWN, False)):
            found[name(layer.target.component, layer.target.path, up)] = held[f"{own}.{part}"]
    return path, held, found


def merged(folder: Path, family: str, path: Path) -> torch.Tensor:
    model = load_model(
        models.base(folder, family), components=models._without_vae(family), prediction_type="epsilon",
        adapters=[Request(path)],
    )  # fmt: skip
    return models.prediction(model)


@pytest.mark.parametrize("name", (diffusers_new, diffusers_old, peft), ids=lambda name: name.__name__)
def test_the_same_numbers_under_other_names_make_the_same_model(name, tmp_path) -> None:
    path, held, found = renamed(tmp_path, name)
    other = write(tmp_path / "other.safetensors", found)
    assert torch.equal(merged(tmp_path, "sd1", other), merged(tmp_path, "sd1", path))
    summary = summarize(open_adapter(other))
    assert summary.kind == "LoRA" and summary.ranks == (4,) and summary.alphas == (4,)
    assert sum(sum(roles.values()) for roles in summary.layers.values()) == len(held) // 3


def test_sdxls_second_text_encoder_is_found_under_diffusers_names(tmp_path) -> None:
    path, _, found = renamed(tmp_path, diffusers_new, "sdxl")
    other = write(tmp_path / "other.safetensors", found)
    assert torch.equal(merged(tmp_path, "sdxl", other), merged(tmp_path, "sdxl", path))


@pytest.mark.parametrize(
    ("config", "alpha"), [({"lora_alpha": 2}, 2), ({"lora_alpha": 2, "use_rslora": True}, 4)]
)
def test_pefts_configuration_beside_it_tells_alpha(config, alpha, tmp_path) -> None:
    _, held, found = renamed(tmp_path, peft)
    folder = tmp_path / "peft"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", found)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for key in held:
        if key.endswith("alpha"):
            held[key] = torch.tensor(float(alpha))
    expected, _ = kohya.applied(models.weights("sd1"), held)
    wanted = models.prediction(models.reloaded(tmp_path, "sd1", expected))
    torch.testing.assert_close(merged(tmp_path, "sd1", folder), wanted, atol=1e-5, rtol=1e-5)
    assert inspect(folder).adapter.alphas == (alpha,)


def test_diffusers_metadata_tell_alpha(tmp_path) -> None:
    _, held, found = renamed(tmp_path, diffusers_new)
    config = {"unet.lora_alpha": 2, "unet.r": 4, "text_encoder.lora_alpha": 8}
    path = write(tmp_path / "other.safetensors", found, {"lora_adapter_metadata": json.dumps(config)})
    for key in held:
        if key.endswith("alpha"):
            held[key] = torch.tensor(2.0 if key.startswith("lora_unet") else 8.0)
    expected, _ = kohya.applied(models.weights("sd1"), held)
    wanted = models.prediction(models.reloaded(tmp_path, "sd1", expected))
    torch.testing.assert_close(merged(tmp_path, "sd1", path), wanted, atol=1e-5, rtol=1e-5)


def test_a_file_without_alpha_adds_all_that_it_holds(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sd1", lora_alpha=4)
    held = {key: tensor for key, tensor in load_file(path).items() if not key.endswith("alpha")}
    assert torch.equal(
        merged(tmp_path, "sd1", write(tmp_path / "other.safetensors", held)), merged(tmp_path, "sd1", path)
    )


def test_a_text_projection_is_said_to_be_one(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sdxl")
    held = load_file(path)
    held |= {f"lora_te2_text_projection.{part}": torch.zeros(2, 2) for part in (UP, DOWN)}
    with pytest.raises(InputError, match="its lora_te2_text_projection changes the text projection"):
        merged(tmp_path, "sdxl", write(tmp_path / "odd.safetensors", held))


def test_one_family_with_other_channels_takes_the_same_loras(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sd1", target_blocks="all")
    base = load_model(models.base(tmp_path, "sd1-inpaint"), components=(), prediction_type="epsilon")
    bound = bind(
        open_adapter(path), base.identified.family, targets_of(base.source, base.description), setting=""
    )
    assert len(bound.layers) == len(open_adapter(path).layers)


def test_a_layer_that_the_model_has_not_is_named(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sd1")
    held = load_file(path)
    for part in (UP, DOWN):
        held[f"lora_unet_middle_of_nowhere.{part}"] = torch.zeros(2, 2)
    path = write(tmp_path / "odd.safetensors", held)
    with pytest.raises(InputError, match="middle_of_nowhere"):
        merged(tmp_path, "sd1", path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_unet_a.oft_blocks": torch.zeros(2, 2)}, "OFT"),
        ({"lora_unet_a.on_input": torch.zeros(2), "lora_unet_a.weight": torch.zeros(2)}, "IA3"),
        ({"anything": torch.zeros(2)}, "no LoRA"),
    ],
)
def test_what_is_no_adapter_that_can_be_used_is_refused_by_name(tensors, said, tmp_path) -> None:
    with pytest.raises(InputError, match=said) as raised:
        open_adapter(write(tmp_path / "odd.safetensors", tensors))
    assert str(tmp_path) in str(raised.value)


TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({f"{TO_Q}.{UP}": None}, f"{TO_Q} has no {UP}"),
        ({f"{TO_Q}.{DOWN}": torch.zeros(3, 32)}, f"{TO_Q}.{DOWN} (3 x 32) do not go together"),
        ({f"{TO_Q}.alpha": torch.tensor([1.0, 2.0])}, f"{TO_Q}.alpha (2) has a shape that cannot be"),
        ({f"{TO_Q}.alpha": torch.tensor(float("nan"))}, f"{TO_Q}.alpha holds NaN"),
        ({f"{TO_Q}.{UP}": torch.full((32, 4), float("inf"))}, f"{TO_Q}.{UP} holds NaN or an infinite"),
        ({f"{TO_Q}.dora_scale": torch.full((1, 32), float("nan"))}, f"{TO_Q}.dora_scale holds NaN"),
        (
            {f"{TO_Q}.{UP}": torch.zeros(32, 0), f"{TO_Q}.{DOWN}": torch.zeros(0, 32)},
            "(0 x 32) has a shape that cannot be",
        ),
        ({f"{TO_Q}.dora_scale": torch.ones(1, 7)}, "(1 x 7) does not go with a layer of 32 x 32"),
    ],
)
def test_a_damaged_file_is_refused_by_the_tensor_and_shown_as_damaged(changed, said, tmp_path) -> None:
    model, path = models.trained(tmp_path, "sd1")
    held = {**load_file(path), **changed}
    bad = write(
        tmp_path / "bad.safetensors", {key: value for key, value in held.items() if value is not None}
    )
    out = tmp_path / "out.safetensors"
    for use in (
        lambda: models.planned(model, rank=0, init_from=bad),
        lambda: convert(models.base(tmp_path, "sd1"), out, adapters=[Request(bad)]),
    ):
        with pytest.raises(InputError, match=re.escape(said)) as refused:
            use()
        assert "this LoRA is damaged" in refused.value.what and str(bad) in refused.value.where
    assert not out.exists()
    shown = inspect(bad)
    if "a layer of" not in said:  # what the model's layer is, a file alone does not tell
        assert (
            shown.adapter is not None
            and said in shown.adapter.unusable
            and "not usable     damaged" in str(shown)
        )


def test_a_file_of_which_only_the_head_is_read_shows_no_more_than_that(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sd1")
    held = load_file(path) | {f"{TO_Q}.{UP}": torch.full((32, 4), float("nan"))}
    bad = write(tmp_path / "bad.safetensors", held)
    assert inspect(bad, hashed=False).adapter.unusable == "" != inspect(bad).adapter.unusable


@pytest.mark.parametrize(
    ("layer", "metadata", "title"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", {}, "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", {}, "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", {}, "Stable Diffusion 3"),
        ("lora_unet_x", {"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
        ("transformer.transformer_blocks.0.attn.to_q", {}, "a transformer model (Flux or the like)"),
    ],
)
def test_an_adapter_for_a_model_of_another_make_is_called_so(layer, metadata, title, tmp_path) -> None:
    held = {f"{layer}.{UP}": torch.zeros(8, 2), f"{layer}.{DOWN}": torch.zeros(2, 8)}
    path = write(tmp_path / "other.safetensors", held, metadata)
    with pytest.raises(InputError, match=re.escape(f"it is for {title}, and the model is")):
        merged(tmp_path, "sd1", path)
    assert inspect(path).adapter.family == title


def test_what_is_no_file_of_tensors_is_to_be_a_lora(tmp_path) -> None:
    (tmp_path / "a.safetensors").write_text('{"hello": 1}' * 20)
    (tmp_path / "b.safetensors").write_bytes(bytes(range(7, 250)) * 20)
    for name in ("a", "b"):
        with pytest.raises(InputError) as refused:
            open_adapter(tmp_path / f"{name}.safetensors")
        assert refused.value.remedy == "name a LoRA's file"


def test_merging_says_that_a_strength_is_nowhere_told(tmp_path) -> None:
    _, _, found = renamed(tmp_path, peft)
    folder = tmp_path / "peft"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", found)
    done = convert(models.base(tmp_path, "sd1"), tmp_path / "out.safetensors", adapters=[Request(folder)])
    assert any("no alpha is told for peft" in note for note in done.notes)


def test_an_adapter_that_makes_weights_too_large_is_not_merged(tmp_path, capsys) -> None:
    _, path = models.trained(tmp_path, "sd1")
    held = load_file(path)
    write(path, {name: tensor * (1e6 if UP in name else 1) for name, tensor in held.items()})
    base = models.base(tmp_path, "sd1")
    narrow = tmp_path / "narrow.safetensors"
    convert(base, narrow, prediction_type="epsilon", dtype="float16")
    there = sorted(tmp_path.iterdir())
    for model, file in ((narrow, "out.safetensors"), (narrow, "folder")):
        assert tiny.dreambooth("convert", model, tmp_path / file, "--lora", f"{path}:100") == 2
        assert "holds numbers that are too large for float16" in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == there
    assert convert(narrow, tmp_path / "wide.safetensors", adapters=[Request(path, 100)], dtype="float32")
    write(path, {name: tensor * (1e30 if "weight" in name else 1) for name, tensor in held.items()})
    with pytest.raises(
        InputError, match=r"with the adapter in it model\.\S+ is no longer made of finite numbers"
    ):
        convert(base, tmp_path / "out.safetensors", adapters=[Request(path)])


def test_tucker_forms_make_what_their_formulas_say() -> None:
    from dreambooth.trainer.adapters.kinds import KINDS

    torch.manual_seed(0)
    weight = torch.zeros(6, 5, 3, 3)
    lora = {
        UP: torch.randn(6, 2, 1, 1),
        DOWN: torch.randn(2, 5, 1, 1),
        "lora_mid.weight": torch.randn(2, 2, 3, 3),
    }
    found = KINDS["lora"].merged(weight, lora, 1.0)
    by_hand = torch.einsum(
        "nmkl,in,mj->ijkl", lora["lora_mid.weight"], lora[UP].flatten(1), lora[DOWN].flatten(1)
    )
    torch.testing.assert_close(found, by_hand)
    assert made_shape({name: tuple(tensor.shape) for name, tensor in lora.items()}) == (6, 45)
    loha = {
        f"hada_w{n}_{side}": torch.randn(2, width) for n in (1, 2) for side, width in (("a", 6), ("b", 5))
    }
    loha |= {f"hada_t{n}": torch.randn(2, 2, 3, 3) for n in (1, 2)}
    first, second = (
        torch.einsum("ijkl,jr,ip->prkl", loha[f"hada_t{n}"], loha[f"hada_w{n}_b"], loha[f"hada_w{n}_a"])
        for n in (1, 2)
    )
    torch.testing.assert_close(KINDS["loha"].merged(weight, loha, 0.5), 0.5 * first * second)
    assert made_shape({name: tuple(tensor.shape) for name, tensor in loha.items()}) == (6, 45)


def test_a_request_is_a_file_and_a_weight() -> None:
    assert parse_request("a.safetensors") == Request(Path("a.safetensors"), 1.0)
    assert parse_request("a.safetensors:0.5") == Request(Path("a.safetensors"), 0.5)
    assert parse_request("C:\\a.safetensors:-1") == Request(Path("C:\\a.safetensors"), -1.0)
    assert parse_request("C:\\a.safetensors") == Request(Path("C:\\a.safetensors"), 1.0)
    assert parse_request("C:/a.safetensors") == Request(Path("C:/a.safetensors"), 1.0)
    for text in (
        "a.safetensors:nan",
        "a.safetensors:1000",
        "x:abc",
        "a.safetensors:",
        "C:\\a.safetensors:half",
    ):
        with pytest.raises(InputError, match="no weight") as refused:
            parse_request(text)
        assert refused.value.where == f"--lora {text}" and "FILE:0.5" in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "no file is named") for text in ("", " ", ":", ":0.5")),
        ("a:0.5:0.5", "two weights"),
        ("a:0,8", "`0,8` is no weight"),
    ],
)
def test_a_request_that_is_none_is_not_looked_for_as_a_file(text, said) -> None:
    with pytest.raises(InputError, match=said) as refused:
        parse_request(text)
    assert "FILE:0.5" in refused.value.remedy


def test_a_colon_in_a_files_name_is_no_weight(tmp_path) -> None:
    path = tmp_path / "a:b"
    try:
        path.write_bytes(b"")
    except OSError:
        pytest.skip("names have no colons here")
    assert parse_request(str(path)) == Request(path, 1.0)


def test_a_weight_that_is_no_number_ends_before_anything_is_read(tmp_path, capsys) -> None:
    out = tmp_path / "merged.safetensors"
    assert tiny.dreambooth("convert", tmp_path / "gone.safetensors", out, "--lora", "x:abc") == 2
    assert "--lora x:abc: `abc` is no weight" in capsys.readouterr().err and not out.exists()


def test_inspect_tells_what_an_adapter_is(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sd2", adapter="dora", target_blocks="attention, convolutions")
    found = inspect(path)
    assert found.identified is None and "LoRA" in found.problem
    assert (
        found.adapter is not None
        and found.adapter.kind == "DoRA"
        and found.adapter.family == "Stable Diffusion 2.x"
    )
    assert (
        list(found.adapter.layers) == ["UNet", "text encoder"]
        and "convolutions" in found.adapter.layers["UNet"]
    )
    assert "DoRA for Stable Diffusion 2.x" in str(found) and "rank           4; alpha 4" in str(found)
    told = json.loads(json.dumps(found.as_json()))
    assert told["adapter"]["ranks"] == [4] and told["usable"] and told["problem"] == ""


def test_inspect_tells_programs_that_an_adapter_with_foreign_parts_cannot_be_used(tmp_path) -> None:
    _, path = models.trained(tmp_path, "sd1")
    tensors = {**load_file(path), "lora_unet_conv_in.diff": torch.zeros(1)}
    told = inspect(write(tmp_path / "odd.safetensors", tensors)).as_json()
    assert not told["usable"] and "lora_unet_conv_in.diff" in told["problem"]


@pytest.mark.parametrize(("told", "noted"), [("v_prediction", 1), ("epsilon", 0), ("", 0)])
def test_an_adapter_for_another_prediction_is_a_note_where_it_is_merged_drawn_or_trained_on(
    told, noted, tmp_path, monkeypatch
) -> None:
    # the model knows too few words to draw
    monkeypatch.setattr(drawing, "_picture", lambda *given: Image.new("RGB", (64, 64)))
    model, path = models.trained(tmp_path, "sd1")
    path = write(tmp_path / "told.safetensors", load_file(path), told and {"modelspec.prediction_type": told})
    started = models.planned(model, rank=0, init_from=path).notes
    opened, open_weights = [], reading.open_weights
    monkeypatch.setattr(reading, "open_weights", lambda path: opened.append(path) or open_weights(path))
    found = convert(model.source.path, tmp_path / "out.safetensors", adapters=[Request(path)]).notes
    assert started[0] == f"the adapter goes on from {path}"
    drawn: list[str] = []
    picture = {"out": tmp_path / "a.png", "steps": 1, "size": "64"}
    drawing.generate(model.source.path, "a cat", adapters=[Request(path)], say=drawn.append, **picture)
    assert opened == [path, path], "once in each, for its weights and for its notes"
    for notes in (found, started, drawn):
        said = [note for note in notes if "told.safetensors was made for a model that predicts" in note]
        assert len(said) == noted
