"""What an adapter will be, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import replace

import models
import pytest
import torch
from checkpoints import write
from safetensors.torch import load_file
from watching import metadata

from dreambooth.shared.config import setting_fields
from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters.attached import attach
from dreambooth.trainer.adapters.kinds import KINDS, factors
from dreambooth.trainer.adapters.plan import adapter_plan
from dreambooth.trainer.adapters.writing import adapter_bytes, base_version, write_adapter
from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.weights.casting import Overflow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = models.base(tmp_path_factory.mktemp("sd1"), "sd1")
    return load_model(path, components=("unet", "text_encoder"), prediction_type="epsilon")


@pytest.mark.parametrize("kind", KINDS)
def test_counts_shapes_and_size_are_those_of_what_is_written(kind, model, tmp_path) -> None:
    fresh = load_model(model.source.path, components=("unet", "text_encoder"), prediction_type="epsilon")
    plan = models.planned(fresh, adapter=kind, output_kind=KINDS[kind].result, target_blocks="all")
    attached = attach(fresh.components, plan, seed=1)
    for component in ("unet", "text_encoder"):
        held = attached.state(component)
        assert sum(tensor.numel() for tensor in held.values()) == plan.parameters(component)
        assert sorted(map(tuple, (tensor.shape for tensor in held.values()))) == sorted(
            plan.shapes(component)
        )
    state = {name: attached.state(name) for name in ("unet", "text_encoder")}
    path = tmp_path / "lora.safetensors"
    write_adapter(path, fresh, plan, state, output_dtype=torch.bfloat16, metadata={}, overwrite=False)
    size = adapter_bytes(plan, fresh.identified.family, torch.bfloat16)
    assert 0 < path.stat().st_size - size < 2000, "all but the metadata"
    dtypes = {key.rpartition(".")[2] == "alpha": tensor.dtype for key, tensor in load_file(path).items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_rank_and_alpha_begin_at_the_usual_ones(model) -> None:
    plan = models.planned(model, rank=0)
    assert (plan.kind.name, plan.rank, plan.alpha) == ("lora", 16, 16.0)
    assert {layer.scale for layer in plan.layers} == {1.0}
    assert {layer.scale for layer in models.planned(model, rank=8, lora_alpha=4).layers} == {0.5}
    assert models.planned(model, output_kind="lycoris").kind.name == "lokr"


def test_a_lowered_rank_keeps_the_factor(model) -> None:
    plan = models.planned(model, rank=40, lora_alpha=20, clip_rank="yes")
    ranks = {layer.shapes["lora_down.weight"][0] for layer in plan.layers}
    assert ranks == {32, 40} and {layer.scale for layer in plan.layers} == {0.5}
    with pytest.raises(InputError, match="rank 40 is above the width 32"):
        models.planned(model, rank=40)


def test_a_rank_is_measured_at_the_narrowest_layer_that_gets_one(model) -> None:
    for rank in (33, 65, 1024):
        with pytest.raises(InputError, match=f"rank {rank} is above the width 32 of ") as refused:
            models.planned(model, rank=rank, target_blocks="all")
        assert "use at most 32" in refused.value.remedy
    assert models.planned(model, rank=32, target_blocks="all").rank == 32


def test_blocks_of_the_unet_that_are_named_without_it_are_a_note(model) -> None:
    asked = models.settings(model.source.path, target_blocks="attention, mid", train_unet="no")
    plan = adapter_plan(asked, model, ["text_encoder"])
    assert [note for note in plan.notes if note.startswith("target_blocks: mid has no effect")]
    assert not models.planned(model, target_blocks="attention, mid").notes


def test_layers_that_reach_nobody_have_no_adapter(model) -> None:
    def layers(found, component: str, **values) -> set[str]:
        plan = models.planned(found, **values)
        return {
            layer.target.path.split(".")[2] for layer in plan.layers if layer.target.component == component
        }

    assert layers(model, "text_encoder") == {"0", "1"}
    assert layers(model, "text_encoder", clip_skip=2) == {"0"}


def test_sdxls_first_text_encoder_ends_a_layer_early_and_the_second_does_not(tmp_path) -> None:
    model = load_model(models.base(tmp_path, "sdxl"), components=(), prediction_type="epsilon")
    plan = models.planned(model)
    used = {
        name: {layer.target.path.split(".")[2] for layer in plan.layers if layer.target.component == name}
        for name in ("text_encoder", "text_encoder_2")
    }
    assert used == {"text_encoder": {"0", "1"}, "text_encoder_2": {"0", "1", "2", "3"}}


def test_a_file_to_go_on_from_decides_kind_rank_and_layers(tmp_path) -> None:
    model, path = models.trained(
        tmp_path, "sd1", adapter="dora", lora_alpha=2, target_blocks="attention, mid"
    )
    plan = models.planned(model, rank=0, init_from=path)
    assert (plan.kind.name, plan.rank, plan.alpha) == ("dora", 4, 2.0)
    assert {layer.target.block for layer in plan.layers if layer.target.component == "unet"} == {"mid"}
    wider = models.planned(model, rank=0, init_from=path, target_blocks="attention, feed_forward")
    assert len(wider.layers) > len(plan.layers) and wider.start is not None


@pytest.mark.parametrize(
    ("values", "said", "remedy"),
    [
        ({"rank": 8}, "its rank is 4, not 8", "leave rank at 0"),
        ({"lora_alpha": 3}, "its alpha is 4, not 3", "leave lora_alpha at 0"),
        ({"adapter": "dora"}, "it is LoRA, not DoRA", "leave adapter at auto, with output_kind: lora"),
        (
            {"adapter": "loha", "output_kind": "lycoris"},
            "it is LoRA, not LoHa",
            "at auto, with output_kind: lora",
        ),
        (
            {"output_kind": "lycoris"},
            "LoRA is written with output_kind: lora, not lycoris",
            "set output_kind: lora",
        ),
        ({"target_blocks": "feed_forward"}, "not in target_blocks", "leave target_blocks empty"),
    ],
)
def test_what_contradicts_the_file_is_refused_with_what_agrees_with_it(
    values, said, remedy, tmp_path
) -> None:
    model, path = models.trained(tmp_path, "sd1")
    with pytest.raises(InputError, match=said) as refused:
        models.planned(model, **{"rank": 0, "init_from": path, **values})
    assert refused.value.where == f"init_from: {path}" and refused.value.setting == "init_from"
    assert remedy in refused.value.remedy and refused.value.remedy.endswith(", or name another file")


def test_a_form_that_is_merged_and_not_trained_is_called_by_its_tensors(tmp_path) -> None:
    model, path = models.trained(tmp_path, "sd1", target_blocks="attention, convolutions")
    held = load_file(path)
    layer = next(key for key in held if key.endswith("conv1.lora_down.weight")).removesuffix(
        ".lora_down.weight"
    )
    rank, inputs = held[f"{layer}.lora_down.weight"].shape[:2]
    held[f"{layer}.lora_down.weight"] = torch.ones(rank, inputs, 1, 1)
    held[f"{layer}.lora_mid.weight"] = torch.ones(rank, rank, 3, 3)
    with pytest.raises(InputError, match=r"is made of lora_mid\.weight, which can be used and not trained"):
        models.planned(model, rank=0, init_from=write(tmp_path / "core.safetensors", held))


def test_a_file_with_a_text_encoder_wants_it_trained(tmp_path) -> None:
    model, path = models.trained(tmp_path, "sd1")
    settings = models.settings(model.source.path, rank=0, init_from=path)
    with pytest.raises(InputError, match="text encoder, which is not trained") as refused:
        adapter_plan(settings, model, ["unet"])
    assert "set train_text_encoder: yes" in refused.value.remedy
    with pytest.raises(InputError, match="UNet, which is not trained") as refused:
        adapter_plan(settings, model, ["text_encoder"])
    assert "set train_unet: yes" in refused.value.remedy


@pytest.mark.parametrize("name", ["gone.safetensors", "model"])
def test_a_file_to_start_from_that_is_none_is_said_of_its_setting(name, tmp_path) -> None:
    model, _ = models.trained(tmp_path, "sd1")
    path = model.source.path if name == "model" else tmp_path / name
    with pytest.raises(InputError) as refused:
        models.planned(model, rank=0, init_from=path)
    assert refused.value.setting == "init_from"


def test_the_beginning_depends_on_seed_and_layer_alone(model) -> None:
    states = []
    for seed in (1, 1, 2):
        fresh = load_model(model.source.path, components=("unet", "text_encoder"), prediction_type="epsilon")
        states.append(attach(fresh.components, models.planned(fresh), seed).state("unet"))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        assert name.endswith("up.weight") or not torch.equal(tensor, states[2][name])


@pytest.mark.parametrize("size", (1, 7, 32, 48, 320, 1280))
def test_the_two_sides_of_a_kronecker_product_make_the_whole(size) -> None:
    few, many = factors(size)
    assert few * many == size and few <= min(8, math.isqrt(size))


def test_the_base_is_named_as_kohya_names_it() -> None:
    names = {
        (family, prediction): base_version(Identified(FAMILIES[family], prediction, ""))
        for family in ("sd1", "sd2-inpaint", "sdxl")
        for prediction in ("epsilon", "v_prediction")
    }
    assert list(names.values()) == [
        "sd_v1",
        "sd_v1_v",
        "sd_v2",
        "sd_v2_v",
        "sdxl_base_v1-0",
        "sdxl_base_v1-0",
    ]


def test_an_adapters_file_tells_a_zero_terminal_snr_and_is_not_written_where_it_does_not_fit(
    model, tmp_path
) -> None:
    fresh = load_model(model.source.path, components=("unet",), prediction_type="epsilon")
    plan = adapter_plan(models.settings(model.source.path, train_text_encoder="no"), fresh, ["unet"])
    state = {"unet": attach(fresh.components, plan, seed=1).state("unet")}
    path = tmp_path / "lora.safetensors"
    for zero in (True, False):
        base = replace(fresh, identified=replace(fresh.identified, zero_terminal_snr=zero))
        write_adapter(path, base, plan, state, output_dtype=torch.float32, metadata={}, overwrite=True)
        assert metadata(path).get("ss_zero_terminal_snr") == ("True" if zero else None)
    for tensor in state["unet"].values():
        tensor.fill_(1e5)
    wide, narrow = tmp_path / "wide.safetensors", tmp_path / "narrow.safetensors"
    write_adapter(wide, fresh, plan, state, output_dtype=torch.bfloat16, metadata={}, overwrite=False)
    with pytest.raises(Overflow, match=r"lora_unet_\S+ holds numbers that are too large for float16"):
        write_adapter(narrow, fresh, plan, state, output_dtype=torch.float16, metadata={}, overwrite=False)
    assert {found.name for found in tmp_path.iterdir()} == {"lora.safetensors", "wide.safetensors"}


def test_the_page_offers_each_kind_of_adapter_for_the_kind_of_result_that_it_is_written_with() -> None:
    about = setting_fields()["adapter"][1].metadata
    assert about["choice_kinds"] == {name: (kind.result,) for name, kind in KINDS.items()}
