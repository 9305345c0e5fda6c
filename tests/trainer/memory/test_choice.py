"""The quickest settings that fit are taken where they were left open; what was set stays, and whether it fits is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from dreambooth.shared.config import load_settings
from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings
from dreambooth.trainer.machine import Machine
from dreambooth.trainer.memory.choice import Scale, choose
from dreambooth.trainer.memory.phases import Line, Phase
from dreambooth.trainer.memory.room import GB, Room
from dreambooth.trainer.memory.ways import PLAIN, plain, value_of
from dreambooth.trainer.models.checkpointing import units_of
from dreambooth.trainer.planning.plan import make_plan

FIXED, OPTIMIZER, GRADIENTS, KEPT = 3, 7, 4, 6  # in GB, of a run that is made up


def asked_and_plan(folder: Path, **values: Any) -> tuple[Settings, Any]:
    asked = load_settings(tiny.config(folder, **values))
    plan = make_plan(asked)
    return asked, replace(plan, machine=Machine(torch.device("cuda"), "a card", "bf16", "sdpa", "bf16"))


def card(gigabytes: float, *, limit: float = 0, total: float = 0) -> Room:
    return Room(
        "the card", "cuda", round((total or gigabytes) * GB), round(gigabytes * GB), round(limit * GB)
    )


def made_up(plan: Any, usable: int = 0) -> list[Phase]:
    """A training whose parts are round numbers: what settings do to them can be added up by hand."""
    training = plan.settings.training
    units = units_of(plan.base)
    asked = training.gradient_checkpointing
    twice = {"no": 0, "yes": units}.get(asked, 0) if not asked.isdecimal() else int(asked)
    share = 1.0
    images = training.train_batch_size * (2 if plan.prior else 1)
    if training.forward_batch_size:
        share = training.forward_batch_size / images
    narrow = 0.5 if training.weights_dtype == "bfloat16" else 1.0
    base = 0.5 if plan.settings.model.base_precision == "int8" else 1.0
    parts = (
        FIXED * narrow * base,
        OPTIMIZER / {"adamw8bit": 4, "adafactor": 7}.get(training.optimizer, 1),
        GRADIENTS * narrow * (training.fused_backward != "yes"),
        KEPT * (1 - 0.9 * twice / units) * share,
    )
    return [Phase("training", tuple(Line(str(part), round(part * GB)) for part in parts))]


MADE_UP = Scale(made_up, lambda plan: 0)


def works(name: str) -> bool:
    return name == "adamw8bit"


def set_apart(settings: Settings) -> dict[str, str]:
    """What is not plain."""
    found = {name: value_of(settings, name) for name in (*PLAIN, "forward_batch_size")}
    return {name: str(value) for name, value in found.items() if value not in (PLAIN.get(name), 0)}


def test_with_room_enough_everything_is_plain_and_nothing_is_said(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path)
    choice = choose(plan, asked, card(40), works, MADE_UP)
    assert choice.fits and set_apart(choice.settings) == {} and choice.notes == ()


@pytest.mark.parametrize(
    ("gigabytes", "chosen"),
    [
        (20, {"optimizer": "adamw8bit"}),
        (12, {"gradient_checkpointing", "optimizer"}),
        (7.5, {"gradient_checkpointing", "optimizer", "weights_dtype"}),
        (5.6, {"gradient_checkpointing", "optimizer", "weights_dtype"}),
        (5.0, {"gradient_checkpointing", "optimizer", "fused_backward", "weights_dtype"}),
    ],
)
def test_less_room_takes_the_cheapest_ways_first(gigabytes: float, chosen: Any, tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, train_batch_size=1, prior_loss_weight=0)
    choice = choose(plan, asked, card(gigabytes), works, MADE_UP)
    assert choice.fits and choice.fullest.bytes <= choice.room.usable
    assert set(set_apart(choice.settings)) == set(chosen)
    assert all(f"{name}: {value}" in choice.notes[0] for name, value in set_apart(choice.settings).items())


def test_what_was_set_stays_and_the_plan_says_that_it_may_not_fit(tmp_path: Path) -> None:
    pinned = {**PLAIN, "forward_batch_size": 2}  # the whole batch
    asked, plan = asked_and_plan(tmp_path, **pinned)
    choice = choose(plan, asked, card(8, total=24), works, MADE_UP)
    assert not choice.fits and choice.settings.training == plan.settings.training
    (note,) = choice.notes
    assert note.startswith(
        "this may not fit: training needs about 20.00 GB, and of the 8.00 GB of the card that are free 7.5"
    )
    assert (
        "optimizer, weights_dtype, fused_backward, gradient_checkpointing, base_precision, vae_tiling: auto"
        in note
    )


def test_a_batch_goes_through_in_parts_before_steps_stop_being_plain_ones(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, train_batch_size=4, optimizer="adamw", gradient_checkpointing="no")
    choice = choose(plan, asked, card(18), works, MADE_UP)
    assert set_apart(choice.settings) == {"forward_batch_size": "4"}


def test_sample_pictures_never_keep_a_training_from_its_beginning(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, prior_loss_weight=0)

    def with_samples(plan: Any, usable: int) -> list[Phase]:
        return [*made_up(plan), Phase("samples", (Line("pictures", 30 * GB),))]

    choice = choose(plan, asked, card(24, limit=23), works, Scale(with_samples, lambda plan: 0))
    assert choice.fits and set_apart(choice.settings) == {} and [phase.name for phase in choice.phases] == [
        "training", "samples",
    ]  # fmt: skip
    (note,) = choice.notes
    assert note.startswith("sample pictures take about 30.00 GB, which may not fit")
    text = replace(plan, memory=choice).text()
    assert (
        "Memory     fits but for sample pictures: 30.00 GB at most, in samples; 23.00 GB of the card are allowed"
        in text
    )


def test_an_8_bit_optimizer_is_proved_and_passed_over_where_it_does_not_work(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, prior_loss_weight=0)
    tried: list[str] = []
    choice = choose(plan, asked, card(19), lambda name: bool(tried.append(name)), MADE_UP)
    assert choice.fits and set(tried) == {"adamw8bit"} and choice.settings.training.optimizer == "adamw"


def test_a_limit_that_nothing_fits_into_is_refused_with_the_smallest_that_would(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, prior_loss_weight=0)
    with pytest.raises(InputError) as refused:
        choose(plan, asked, card(24, limit=2.5), works, MADE_UP)
    assert refused.value.where == "vram_limit"
    assert (
        "the smallest setting needs about 3.10 GB (training), and vram_limit allows 2.5 GB"
        in refused.value.what
    )
    assert "set vram_limit to 3.4 or more, or use " in refused.value.remedy
    with pytest.raises(InputError) as refused:
        choose(plan, asked, card(24, limit=0.1), works, MADE_UP)
    assert refused.value.remedy == "set vram_limit to 3.4 or more", "nothing else would do"
    assert choose(plan, asked, card(24, limit=3.4), works, MADE_UP).fits, (
        "what is said to be enough is enough"
    )
    with pytest.raises(InputError) as refused:
        choose(plan, asked, card(2, total=3), works, MADE_UP)
    assert refused.value.where == "model" and "the card has 3.00 GB" in refused.value.what


def test_an_adapters_weights_are_never_narrowed(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, output_kind="lora", prior_loss_weight=0)
    choice = choose(plan, asked, card(4, total=24), works, MADE_UP)
    assert choice.settings.training.weights_dtype == "float32"
    assert choice.settings.model.base_precision == "int8", "but what they stand on is"


def test_processes_keep_their_gradients(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, prior_loss_weight=0)
    choice = choose(replace(plan, processes=2), asked, card(6, total=24), works, MADE_UP)
    assert choice.settings.training.fused_backward == "no"


def test_plain_settings_are_what_is_left_open() -> None:
    settings = Settings()
    found = plain(settings)
    assert all(value_of(found, name) == value for name, value in PLAIN.items())
    chosen = replace(settings, training=replace(settings.training, optimizer="came"))
    assert plain(chosen).training.optimizer == "came"


def test_the_plan_of_a_run_has_its_memory_in_numbers_and_in_words(tmp_path: Path) -> None:
    plan = make_plan(load_settings(tiny.config(tmp_path, num_validation_images=1)))
    memory = plan.as_event()["memory"]
    names = [phase["name"] for phase in memory["phases"]]
    assert names == ["class images", "caching", "training", "saving", "samples", "the result's samples"]
    for phase in memory["phases"]:
        assert phase["bytes"] == sum(line["bytes"] for line in phase["lines"]) > 0
    assert memory["fits"] and memory["peak"] == max(phase["bytes"] for phase in memory["phases"])
    text = plan.text()
    assert "of this computer's memory are free" in text and "counted on" in text
    assert all(line["text"] in text for line in memory["phases"][names.index("training")]["lines"])
    assert "Memory     fits: " in text


def test_what_was_asked_for_stands_in_the_plan_beside_what_was_chosen(tmp_path: Path) -> None:
    plan = make_plan(
        load_settings(
            tiny.config(tmp_path, optimizer="adafactor", gradient_checkpointing="3", forward_batch_size=1)
        )
    )
    units = units_of(plan.base)
    text = plan.text()
    for line in (
        "as asked  optimizer: adafactor (it keeps 0.00 GB)",
        f"as asked  gradient_checkpointing: 3 (3 of the UNet's {units} blocks are computed twice instead of kept)",
        "as asked  forward_batch_size: 1 (1 of a step's 2 images go through the model at once)",
    ):
        assert line in text
    assert "chosen" not in text, "what is plain by itself is not worth a line"
    assert [way["name"] for way in plan.as_event()["memory"]["ways"]] == [
        "optimizer", "gradient_checkpointing", "forward_batch_size",
    ]  # fmt: skip


def test_what_was_chosen_is_told_from_what_was_asked(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path, optimizer="adamw", prior_loss_weight=0)
    choice = choose(plan, asked, card(12, total=24), works, MADE_UP)
    ways = {way.name: way.asked for way in choice.ways}
    assert ways.pop("optimizer") is True
    assert ways and not any(ways.values()) and set(ways) | {"optimizer"} >= set(set_apart(choice.settings))


def test_a_batch_in_parts_that_takes_no_less_is_said_to(tmp_path: Path) -> None:
    """All of a step's gradients are kept from part to part, which is more than a small image's activations."""
    plan = make_plan(load_settings(tiny.config(tmp_path, forward_batch_size=1)))
    (note,) = [note for note in plan.notes if note.startswith("forward_batch_size: 1 saves no memory here")]
    assert "0 is quicker" in note
    larger = make_plan(
        load_settings(tiny.config(tmp_path, resolution=512, train_batch_size=4, forward_batch_size=1))
    )
    assert not [note for note in larger.notes if note.startswith("forward_batch_size")]


def test_a_limit_below_what_is_needed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny.config(tmp_path, vram_limit=0.3)
    before = tiny.tree(tmp_path)
    assert tiny.dreambooth("train", config) == 2
    assert tiny.tree(tmp_path) == before


def test_a_made_up_verdict_is_not_asked_for_where_memory_is_no_matter(tmp_path: Path) -> None:
    asked, plan = asked_and_plan(tmp_path)
    verdicts = SimpleNamespace(asked=[])
    choose(plan, asked, card(40), lambda name: verdicts.asked.append(name) or True, MADE_UP)
    assert verdicts.asked == []
