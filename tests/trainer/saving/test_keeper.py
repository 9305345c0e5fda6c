import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from training_rig import CPU, make_rig

from dreambooth.shared.errors import DreamboothError, InputError, RunFailed
from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.control import StopNow
from dreambooth.trainer.models.loading import canonical_state
from dreambooth.trainer.optim.optimizer_table import TABLE
from dreambooth.trainer.optim.optimizers import group_memory
from dreambooth.trainer.optim.schedules import Schedule
from dreambooth.trainer.saving import keeper as keeping
from dreambooth.trainer.saving.checkpoint import load_state, saved_steps

BOTH = ("unet", "text_encoder")
EIGHT_BIT = TrainingSettings(learning_rate=1e-3, optimizer="adamw8bit")
NARROW = TrainingSettings(learning_rate=1e-3, weights_dtype="bfloat16")
NOT_FUSED = TrainingSettings(learning_rate=1e-3, optimizer_args={"fused": "no", "foreach": "yes"})


def spoil(rig) -> None:
    """Whatever a fresh run has: nothing of it may be left after a state was loaded."""
    with torch.no_grad():
        for *_, parameter in rig.weights.parameters():
            parameter.mul_(-3.0)
        for average in rig.weights.ema.averages if rig.weights.ema else []:
            average.fill_(9.0)


def same_bits(one, other) -> None:
    assert one.keys() == other.keys()
    differing = [
        name
        for name in one
        if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])
    ]
    assert not differing


# ---- going on --------------------------------------------------------------------------------------------------------

RUNS = {
    "UNet": {},
    "another kernel, averages": {"training": NOT_FUSED, "ema_decay": 0.9},
    "text encoder alone": {"trained": ("text_encoder",)},
    "text encoder stops later": {"trained": BOTH, "text_stop": 3, "text_rate": 1e-4, "checkpointing": True},
    "text encoder stops here": {"trained": BOTH, "text_stop": 2, "ema_decay": 0.9},
    "text encoder has stopped": {"trained": BOTH, "text_stop": 1, "clip_skip": 2, "chunks": 2},
    "8 bit": {"trained": BOTH, "training": EIGHT_BIT, "text_stop": 3, "ema_decay": 0.5},
    "steps within the backward pass": {
        "trained": BOTH, "text_stop": 3, "checkpointing": True,
        "training": TrainingSettings(learning_rate=1e-3, optimizer="came", fused_backward="yes"),
    },
    "steps within the backward pass, clipped much": {
        "trained": BOTH, "text_stop": 3,
        "training": TrainingSettings(learning_rate=1e-3, fused_backward="yes", max_grad_norm=0.01),
    },
    "bfloat16 weights": {"trained": BOTH, "training": NARROW, "ema_decay": 0.9},
    "bfloat16 weights, 8 bit, within the backward pass": {
        "training": replace(NARROW, optimizer="adamw8bit", fused_backward="yes")
    },
    "accumulation": {
        "batch": 4, "micro_batches": 2, "offset_noise": 0.1, "snr_gamma": 5.0,
        "schedule": Schedule("cosine_with_restarts", 4, warmup=1, cycles=2),
    },
    "channels last": {"layout": torch.channels_last, "ema_decay": 0.9},
}  # fmt: skip


def of(name: str) -> TrainingSettings:
    """An optimizer's settings under which some steps change much."""
    found = {"d0": "1e-3"} if TABLE[name].own_rate else {}
    return TrainingSettings(learning_rate=1.0 if found else 1e-3, optimizer=name, optimizer_args=found)


def test_what_a_processor_saved_lies_in_memory_as_a_card_has_its_weights(tmp_path):
    """A card's fused kernel refuses it otherwise."""
    first, second = (
        make_rig(tmp_path, steps=2, layout=layout) for layout in (torch.preserve_format, torch.channels_last)
    )
    first.train(0, 1)
    first.keeper.save(1)
    second.keeper.restore(CPU)
    optimizer = second.engine.stepper.optimizer
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.exact_resume])
def test_every_optimizer_that_promises_it_goes_on_bit_for_bit(tmp_path, name):
    """The text encoder stops on the way, so that what a group remembers differs between the two."""
    options = {"trained": BOTH, "text_stop": 4, "training": of(name), "batch": 1}
    whole, first, second = (make_rig(tmp_path, steps=6, **options) for _ in range(3))
    losses = whole.train(0, 6)
    first.train(0, 3)
    first.keeper.save(3)
    spoil(second)
    assert second.keeper.restore(CPU) == 3
    assert second.train(3, 6) == losses[3:]
    same_bits(second.bits(), whole.bits())
    memories = [
        [
            group_memory(rig.engine.stepper.optimizer, group)
            for group in rig.engine.stepper.optimizer.param_groups
        ]
        for rig in (second, whole)
    ]
    assert memories[0] == memories[1]


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, options):
    first = make_rig(tmp_path, steps=4, **options)
    first.train(0, 2)
    first.keeper.save(2)
    saved = first.bits()
    losses = first.train(2, 4)
    second = make_rig(tmp_path, steps=4, **options)
    spoil(second)
    assert second.keeper.restore(CPU) == 2
    same_bits(second.bits(), saved)
    assert second.train(2, 4) == losses
    same_bits(second.bits(), first.bits())


def test_to_be_saved_changes_nothing(tmp_path):
    options = {"trained": BOTH, "training": EIGHT_BIT, "ema_decay": 0.5}
    saved, left_alone = (make_rig(tmp_path, **options) for _ in range(2))
    saved.train(0, 1)
    saved.keeper.save(1)
    saved.train(1, 2)
    left_alone.train(0, 2)
    same_bits(saved.bits(), left_alone.bits())


def test_eight_bit_states_are_saved_as_eight_bits_with_their_scales(tmp_path):
    rig = make_rig(tmp_path, training=EIGHT_BIT)
    rig.train(0, 2)
    rig.keeper.save(2)
    moments = load_state(tmp_path / "state").optimizer["state"]
    quantized = [
        slot["__bnb_optimizer_quant_state__"] if "step" in slot and len(slot) == 2 else slot
        for slot in moments.values()
    ]
    large = [slot for slot in quantized if slot["state1"].dtype == torch.uint8]
    assert len(large) > 20 and all({"qmap1", "absmax1", "absmax2"} <= slot.keys() for slot in large)


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales on cards alone")
def test_a_loss_scaler_goes_on_with_its_scale_and_its_count(tmp_path):
    def rig_with(folder, scale):
        return make_rig(folder, scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4))

    whole = rig_with(tmp_path / "a", 64.0)
    losses = whole.train(0, 6)
    assert whole.options.scaler.get_scale() == 128.0
    first = rig_with(tmp_path, 64.0)
    first.train(0, 3)
    first.keeper.save(3)
    second = rig_with(tmp_path, 2.0)
    second.keeper.restore(CPU)
    assert second.options.scaler.get_scale() == 64.0
    assert second.train(3, 6) == losses[3:]
    assert second.options.scaler.state_dict() == whole.options.scaler.state_dict()
    same_bits(second.bits(), whole.bits())


def test_rates_and_kernels_are_those_of_this_process_not_of_the_saved_one(tmp_path):
    """A state may go on with another torch, which has no fused kernel."""
    first = make_rig(tmp_path)
    first.train(0, 1)
    first.keeper.save(1)
    second = make_rig(tmp_path, training=NOT_FUSED)
    second.keeper.restore(CPU)
    (group,) = second.engine.stepper.optimizer.param_groups
    assert not group["fused"] and group["foreach"]
    assert second.train(1, 3) == pytest.approx(first.train(1, 3), rel=1e-4)


@pytest.mark.parametrize(("saved", "wanted", "said"), [
    ({}, {"trained": BOTH}, "text_encoder"),
    ({"trained": BOTH}, {}, "text_encoder"),
    ({}, {"ema_decay": 0.9}, "unet"),
    ({"trained": BOTH, "clip_skip": 2}, {"trained": BOTH}, "groups of"),
])  # fmt: skip
def test_a_state_of_other_settings_is_refused_with_what_is_odd(tmp_path, saved, wanted, said):
    rig = make_rig(tmp_path, **saved)
    rig.train(0, 1)
    rig.keeper.save(1)
    other = make_rig(tmp_path, **wanted)
    with pytest.raises(RunFailed, match="does not fit") as failure:
        other.keeper.restore(CPU)
    assert said in failure.value.what
    assert failure.value.remedy and failure.value.where == str(tmp_path / "state")


def test_a_state_of_another_model_is_refused_before_anything_is_copied(tmp_path, monkeypatch):
    rig = make_rig(tmp_path)
    rig.keeper.save(0)
    other = make_rig(tmp_path)
    layer = other.model.components["unet"].conv_out
    layer.weight = torch.nn.Parameter(torch.zeros(4, 32, 1, 1))
    before = other.model.components["unet"].conv_in.weight.detach().clone().mul_(2)
    with torch.no_grad():
        other.model.components["unet"].conv_in.weight.copy_(before)
    with pytest.raises(RunFailed, match=r"conv_out\.weight"):
        other.keeper.restore(CPU)
    assert torch.equal(other.model.components["unet"].conv_in.weight, before)


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_a_save_is_told_and_holds_all_that_was_trained_by_canonical_names(tmp_path):
    rig = make_rig(tmp_path, trained=BOTH, ema_decay=0.9, keep=2)
    for step in (1, 2, 3):
        rig.train(step - 1, step)
        rig.keeper.save(step)
    assert rig.events == [
        ("checkpoint", {"step": step, "path": tmp_path / "state" / f"step-{step}"}) for step in (1, 2, 3)
    ]
    assert saved_steps(tmp_path / "state") == [2, 3]
    found = load_state(tmp_path / "state")
    assert found.progress.step == 3 and found.progress.ema_updates == 3
    for component in BOTH:
        names = set(canonical_state(component, rig.model.components[component]))
        assert set(found.weights[component]) == set(found.averages[component]) == names
        assert not any(name.startswith("text_model.") for name in names)


# ---- what is exported ------------------------------------------------------------------------------------------------


def test_the_result_is_the_weights_or_their_averages_and_the_weights_of_what_is_not_averaged(tmp_path):
    plain = make_rig(tmp_path, trained=BOTH)
    assert plain.keeper.trained.keys() == set(BOTH)
    weight = plain.model.components["unet"].conv_in.weight
    assert plain.keeper.trained["unet"]["conv_in.weight"].data_ptr() == weight.data_ptr()
    rig = make_rig(tmp_path, trained=BOTH, ema_decay=0.9, clip_skip=2)
    rig.train(0, 2)
    averages, weights = rig.weights.averages(), rig.weights.weights()
    result = rig.keeper.trained
    for component in BOTH:
        assert result[component].keys() == weights[component].keys()
        for name, tensor in result[component].items():
            expected = averages[component].get(name, weights[component][name])
            assert torch.equal(tensor, expected)
    skipped = {name for name in weights["text_encoder"] if name not in averages["text_encoder"]}
    assert skipped and all("layers.1." in name for name in skipped)
    assert not torch.equal(result["unet"]["conv_in.weight"], weights["unet"]["conv_in.weight"])


def test_an_export_goes_to_the_steps_own_file_and_is_told(tmp_path):
    rig = make_rig(tmp_path)
    rig.keeper.export(5)
    assert rig.events == [
        ("exported", {"step": 5, "path": tmp_path / "sks-5.safetensors", "sha256": "0" * 64})
    ]


@pytest.mark.parametrize("error", [
    InputError("it is somebody else's", where="output_name", remedy="move it"),
    DreamboothError("the disk is full", remedy="make room"),
    OSError(5, "Input/output error"),
])  # fmt: skip
def test_an_export_that_fails_is_said_and_does_not_end_the_run(tmp_path, error):
    rig = make_rig(tmp_path)

    def fail(path, trained):
        raise error

    rig.keeper._write_checkpoint = fail
    rig.keeper.export(5)
    ((event, fields),) = rig.events
    assert event == "warning" and "step 5" in fields["text"] and str(error) in fields["text"]


class Made:
    """Notes for which steps the keeper made something."""

    def __init__(self, rig) -> None:
        self.exports: list[int] = []
        self.samples: list[int] = []
        rig.keeper._write_checkpoint = self.export
        rig.keeper._make_samples = lambda step, model: self.samples.append(step)

    def export(self, path, trained):
        self.exports.append(int(path.stem.removeprefix("sks-")))
        return SimpleNamespace(path=path, sha256="")


@pytest.mark.parametrize("killed", ["before", "between", "after"])
def test_what_a_kill_kept_from_being_made_is_made_when_the_run_goes_on_and_nothing_twice(tmp_path, killed):
    first = make_rig(tmp_path)
    made = Made(first)
    first.keeper.export(0)
    first.keeper.sample(0)
    first.keeper.save(2)
    if killed != "before":
        first.keeper.export(2)
    if killed == "after":
        first.keeper.sample(2)
    second = make_rig(tmp_path)
    again = Made(second)
    second.keeper.restore(CPU)
    for step in (2, 4):
        second.keeper.export(step)
        second.keeper.sample(step)
    assert again.exports == ([2, 4] if killed == "before" else [4])
    assert again.samples == ([4] if killed == "after" else [2, 4])
    assert made.exports[0] == 0


def test_the_same_run_makes_again_what_it_is_asked_for_again(tmp_path):
    rig = make_rig(tmp_path)
    made = Made(rig)
    rig.keeper.save(2)
    for _ in range(2):
        rig.keeper.export(2)
    assert made.exports == [2, 2]


@pytest.mark.parametrize("notes", ["{", "[1]", '{"export": "x"}'])
def test_damaged_notes_only_cost_that_it_is_made_once_more(tmp_path, notes):
    rig = make_rig(tmp_path)
    rig.keeper.save(2)
    (tmp_path / "state" / keeping.NOTES).write_text(notes)
    rig.keeper.restore(CPU)
    made = Made(rig)
    rig.keeper.export(2)
    assert made.exports == [2]
    assert json.loads((tmp_path / "state" / keeping.NOTES).read_text())["export"] == 2


def test_notes_that_cannot_be_written_are_no_failure(tmp_path, monkeypatch):
    rig = make_rig(tmp_path)
    made = Made(rig)

    def full(*_):
        raise DreamboothError("no space is left on the disk")

    monkeypatch.setattr(keeping, "write_json", full)
    rig.keeper.export(2)
    rig.keeper.sample(2)
    assert made.exports == made.samples == [2]
    assert [event for event, _ in rig.events] == ["exported"]


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_see_the_averages_and_training_goes_on_with_the_weights(tmp_path):
    rig = make_rig(tmp_path, trained=BOTH, ema_decay=0.9)
    rig.train(0, 2)
    before = rig.bits()
    expected = rig.weights.averages()["unet"]["conv_in.weight"].clone()
    seen = []

    def make_samples(step, model):
        seen.append(model.components["unet"].conv_in.weight.detach().clone())
        for module in model.components.values():
            module.eval()

    rig.keeper._make_samples = make_samples
    rig.keeper.sample(2)
    assert torch.equal(seen[0], expected)
    same_bits(rig.bits(), before)
    assert all(rig.model.components[name].training for name in BOTH)
    rig.train(2, 3)
    assert not torch.equal(rig.bits()["unet conv_in.weight"], before["unet conv_in.weight"])


def test_samples_without_averages_see_the_weights(tmp_path):
    rig = make_rig(tmp_path)
    seen = []
    rig.keeper._make_samples = lambda step, model: seen.append(
        model.components["unet"].conv_in.weight.data_ptr()
    )
    rig.keeper.sample(1)
    assert seen == [rig.model.components["unet"].conv_in.weight.data_ptr()]


def test_a_sample_that_fails_never_ends_a_run_and_leaves_everything_as_it_was(tmp_path):
    rig = make_rig(tmp_path, ema_decay=0.9)
    rig.train(0, 2)
    before = rig.bits()

    def fail(step, model):
        model.components["unet"].eval()
        raise RuntimeError("CUDA out of memory")

    rig.keeper._make_samples = fail
    rig.keeper.sample(2)
    ((event, fields),) = rig.events
    assert event == "warning"
    assert all(part in fields["text"] for part in ("step 2", "RuntimeError", "CUDA out of memory"))
    same_bits(rig.bits(), before)
    assert rig.model.components["unet"].training


def test_an_order_to_stop_at_once_is_heard_while_samples_are_made(tmp_path):
    rig = make_rig(tmp_path, ema_decay=0.9)
    rig.train(0, 1)
    before = rig.bits()

    def stopped(step, model):
        raise StopNow

    rig.keeper._make_samples = stopped
    with pytest.raises(StopNow):
        rig.keeper.sample(1)
    same_bits(rig.bits(), before)


def test_parameters_have_the_optimizers_order_and_the_skipped_layers_are_none(tmp_path):
    rig = make_rig(tmp_path, trained=BOTH, clip_skip=2)
    order = [id(parameter) for *_, parameter in rig.weights.parameters()]
    groups = rig.engine.stepper.optimizer.param_groups
    assert order == [id(parameter) for group in groups for parameter in group["params"]]
    assert [group["name"] for group in groups] == list(BOTH)
    rig.engine.step(0)
    assert all(parameter.requires_grad for *_, parameter in rig.weights.parameters())


# ---- an optimizer's own average --------------------------------------------------------------------------------------


def test_a_schedule_free_run_keeps_samples_and_exports_the_average_and_trains_on_untouched(tmp_path):
    rig, left_alone = (make_rig(tmp_path, training=of("adamwschedulefree")) for _ in range(2))
    for other in (rig, left_alone):
        other.train(0, 4)
    exported, sampled = [], []
    rig.keeper._write_checkpoint = lambda path, trained: (
        exported.append(trained) or SimpleNamespace(path=path, sha256="0" * 64)
    )
    parameter = rig.weights.parameters()[0][2]
    rig.keeper._make_samples = lambda step, model: sampled.append(parameter.detach().clone())
    rig.keeper.save(4)
    rig.keeper.export(4)
    rig.keeper.sample(4)
    same_bits(rig.bits(), left_alone.bits())
    component, name, _ = rig.weights.parameters()[0]
    optimizer = left_alone.engine.stepper.optimizer
    optimizer.eval()  # the library's own way, in place
    wanted = dict(left_alone.weights.weights()[component])[name]
    assert not torch.equal(wanted, parameter)
    torch.testing.assert_close(wanted, exported[0][component][name], rtol=0, atol=0)
    torch.testing.assert_close(wanted, sampled[0], rtol=0, atol=0)
    state = load_state(tmp_path / "state")
    torch.testing.assert_close(wanted, state.averages[component][name], rtol=0, atol=0)
    assert torch.equal(state.weights[component][name], parameter), "what is trained goes on as it was"
    assert rig.train(4, 6) and rig.engine.stepper.optimizer.param_groups[0]["train_mode"]
