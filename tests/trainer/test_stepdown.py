"""Memory that runs out: the step is made again in less, the run goes on with what it came to, and nothing is lost.

No memory is filled: a model, an optimizer or a sampler raises what allocators raise as soon as it is given too much.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import config, dreambooth
from training_rig import Rig, make_rig
from watching import at_event, events, is_finite, run_in, same_tensors

from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.shared.settings import PriorSettings, Settings, TrainingSettings
from dreambooth.trainer.engine import Denoiser
from dreambooth.trainer.models.checkpointing import checkpoint_units
from dreambooth.trainer.processes import Processes
from dreambooth.trainer.sampling import class_images, previews
from dreambooth.trainer.stepdown import (
    NAME,
    GoBack,
    SteppingDown,
    described,
    first_line,
    is_out_of_memory,
    keep_rung,
    next_rung,
    read_rungs,
    stepped_down,
)

FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 8 GiB")

# ---- what an error means -----------------------------------------------------------------------------------------

# as torch 2.1 to 2.13, its libraries and Windows say it
MEANS_IT = [
    FULL,
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to allocat"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:83] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.83 GB, other allocations: 192.00 KB)"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    OSError("[WinError 1455] The paging file is too small for this operation to complete"),
    OSError(12, "Cannot allocate memory"),
]  # fmt: skip
MEANS_SOMETHING_ELSE = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(28, "No space left on device"),
    InputError("this memory of out of memory is a setting's"),
    KeyboardInterrupt("out of memory"),
]


@pytest.mark.parametrize("error", MEANS_IT, ids=first_line)
def test_what_allocators_say_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", MEANS_SOMETHING_ELSE, ids=repr)
def test_other_errors_are_other_errors(error):
    assert not is_out_of_memory(error)


def test_an_allocators_advice_is_left_out():
    assert first_line(FULL) == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert first_line(MemoryError()) == "no more to be had"


# ---- the rungs ---------------------------------------------------------------------------------------------------


def given(**values) -> Settings:
    return Settings(training=replace(TrainingSettings(gradient_checkpointing="no"), **values))


def all_rungs(settings: Settings, images: int) -> list[dict[str, object]]:
    found = []
    while rung := next_rung(settings, images):
        found.append(rung)
        settings = stepped_down(settings, rung)
    return found


PARTS = [{"forward_batch_size": 3}, {"forward_batch_size": 2}, {"forward_batch_size": 1}]


def test_blocks_are_computed_twice_first_then_the_parts_are_halved():
    assert all_rungs(given(), 6) == [{"gradient_checkpointing": "yes"}, *PARTS]
    assert all_rungs(given(gradient_checkpointing="4"), 6) == [{"gradient_checkpointing": "yes"}, *PARTS]
    assert all_rungs(given(gradient_checkpointing="yes"), 6) == PARTS
    assert all_rungs(given(gradient_checkpointing="yes", forward_batch_size=2), 6) == PARTS[2:]
    assert all_rungs(given(gradient_checkpointing="yes", forward_batch_size=100), 2) == PARTS[2:]


def test_parts_are_no_way_where_gradients_are_dropped():
    assert all_rungs(given(fused_backward="yes"), 6) == [{"gradient_checkpointing": "yes"}]


def test_what_a_run_came_to_never_asks_for_more_than_the_settings():
    settings = replace(given(forward_batch_size=2), prior=PriorSettings(sample_batch_size=3))
    found = stepped_down(settings, {"forward_batch_size": 4, "sample_batch_size": 2})
    assert (found.training.forward_batch_size, found.prior.sample_batch_size) == (2, 2)
    assert found.training.gradient_checkpointing == "no"
    assert stepped_down(settings, {}) == settings


def test_rungs_add_up_in_the_runs_folder(tmp_path):
    assert read_rungs(tmp_path) == {}
    keep_rung(tmp_path, {"gradient_checkpointing": "yes"})
    keep_rung(tmp_path, {"forward_batch_size": 4})
    keep_rung(tmp_path, {"forward_batch_size": 2})
    assert read_rungs(tmp_path) == {"gradient_checkpointing": "yes", "forward_batch_size": 2}
    assert "computed twice" in described(read_rungs(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"forward_batch_size": "x", "unknown": 1, "sample_batch_size": true}']
)
def test_a_file_that_says_nothing_is_no_rung(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    assert read_rungs(tmp_path) == {}


# ---- a step ------------------------------------------------------------------------------------------------------


class Rigged:
    """A rig whose UNet takes so many images at once, as many more as are said where its blocks are computed twice."""

    def __init__(self, folder: Path, most: int, most_again: int, **options) -> None:
        self.rig: Rig = make_rig(folder / "rig", **options)
        self.folder = folder
        self.said: list[tuple[str, dict[str, object]]] = []
        self.passed: list[int] = []
        self.most, self.most_again, self.again = most, most_again, False
        self.unet = self.rig.model.components["unet"]
        self.unet.register_forward_pre_hook(self._allocate)
        training = replace(self.rig.options.training, gradient_checkpointing="no")
        self.engine = SteppingDown(
            self.rig.engine,
            Settings(training=training),
            folder,
            lambda event, **fields: self.said.append((event, fields)),
            images=2 * self.rig.options.batch // self.rig.options.micro_batches,
            change=self._change,
        )

    def _allocate(self, _: object, inputs: tuple[torch.Tensor, ...]) -> None:
        images = len(inputs[0])
        if images > (self.most_again if self.again else self.most):
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. {images} images")
        self.passed.append(images)

    def _change(self, rung) -> None:
        if "gradient_checkpointing" in rung:
            self.again = True
            self.unet.train()
            checkpoint_units(self.unet, 100)
        self.rig.engine.forward_batch = rung.get("forward_batch_size", self.rig.engine.forward_batch)

    def train(self, steps: int) -> list[float]:
        return [float(self.engine.step(step).total) for step in range(steps)]

    @property
    def rungs(self) -> list[dict[str, object]]:
        return [fields["memory"] for event, fields in self.said if event == "warning"]


def nearly(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> bool:
    """Whether two runs came to the same weights, up to rounding that Adam's first steps make larger."""
    names = [name for name in start if name.startswith("unet")]
    differing, moved = (
        torch.cat([(some[name] - one[name]).flatten() for name in names]) for some in (other, start)
    )
    return float(differing.norm()) < 2e-3 * float(moved.norm())


def test_a_step_that_does_not_fit_is_made_again_in_less_and_no_bit_is_lost(tmp_path):
    """Blocks that are computed twice give the same bits."""
    plain = make_rig(tmp_path / "plain", batch=2)
    rigged = Rigged(tmp_path, 2, 4, batch=2)
    assert rigged.train(3) == plain.train(0, 3)
    bits, expected = rigged.rig.bits(), plain.bits()
    assert all(torch.equal(bits[name], expected[name]) for name in expected)
    assert rigged.rungs == [{"step": 0, "gradient_checkpointing": "yes"}]
    assert rigged.passed == [4, 4, 4], "the step that failed passed nothing, and none was made twice"
    ((_, fields),) = rigged.said
    assert "memory ran out in step 1 (CUDA out of memory. 4 images)" in fields["text"]
    assert "gradient_checkpointing" in fields["text"] and "nothing is lost" in fields["text"]


def test_it_goes_on_down_until_it_fits_and_stays_there(tmp_path):
    plain = make_rig(tmp_path / "plain", batch=4)
    start = plain.bits()
    rigged = Rigged(tmp_path, 7, 2, batch=4)
    assert rigged.train(3) == pytest.approx(plain.train(0, 3), rel=1e-4)
    assert nearly(plain.bits(), rigged.rig.bits(), start)
    assert rigged.rungs == [
        {"step": 0, "gradient_checkpointing": "yes"},
        {"step": 0, "forward_batch_size": 4},
        {"step": 0, "forward_batch_size": 2},
    ]
    assert rigged.passed == [2] * 12
    assert read_rungs(tmp_path) == {"gradient_checkpointing": "yes", "forward_batch_size": 2}


def test_gradients_that_were_there_already_count_once(tmp_path):
    """Memory runs out in the second micro-batch, when the first has left its gradients."""
    plain = make_rig(tmp_path / "plain", batch=4, micro_batches=2)
    rigged = Rigged(tmp_path, 4, 4, batch=4, micro_batches=2)
    allocate, calls = rigged._allocate, []

    def second_fails(module, inputs):
        calls.append(1)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    rigged.unet._forward_pre_hooks.clear()
    rigged.unet.register_forward_pre_hook(second_fails)
    assert allocate is not None
    assert rigged.train(2) == plain.train(0, 2)
    bits, expected = rigged.rig.bits(), plain.bits()
    assert all(torch.equal(bits[name], expected[name]) for name in expected)


def test_where_nothing_is_left_to_step_down_to_it_ends_and_says_what_would_help(tmp_path):
    rigged = Rigged(tmp_path, 0, 0, batch=2)
    before = rigged.rig.bits()
    with pytest.raises(RunFailed) as failed:
        rigged.train(1)
    assert "memory ran out in step 1" in failed.value.what and "one image at a time" in failed.value.what
    assert "adamw8bit" in failed.value.remedy
    after = rigged.rig.bits()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert len(rigged.rungs) == 3


def test_a_full_memory_in_the_optimizers_step_is_no_matter_of_images(tmp_path):
    rigged = Rigged(tmp_path, 4, 4, batch=2)
    stepper = rigged.rig.engine.stepper
    rigged.train(1)
    stepper._fused = None

    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    stepper.optimizer.step = full
    with pytest.raises(RunFailed, match="when the optimizer took its step") as failed:
        rigged.engine.step(1)
    assert "adamw8bit" in failed.value.remedy and read_rungs(tmp_path) == {} and rigged.said == []


def test_other_errors_pass(tmp_path):
    rigged = Rigged(tmp_path, 4, 4, batch=2)
    rigged.rig.engine.forward_batch = "x"
    with pytest.raises(TypeError):
        rigged.engine.step(0)
    assert read_rungs(tmp_path) == {}


def test_what_failed_holds_no_memory_when_the_step_is_made_again(tmp_path):
    """What the error's traceback held on to is gone."""
    import weakref

    rigged = Rigged(tmp_path, 4, 4, batch=2)
    kept: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def fails_once(module, inputs, made):
        if not kept:
            activation = made[0] * 2
            kept.append(weakref.ref(activation))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        alive.append(kept[0]() is not None)

    rigged.unet.register_forward_hook(fails_once)
    rigged.train(1)
    assert alive == [False]


def in_the_middle_of_the_backward_pass(rigged: Rigged, once: list[int]) -> None:
    """Memory runs out there when some tensors have been stepped: once, where `once` is empty."""
    first = rigged.rig.weights.parameters()[0][2]

    def full(gradient: torch.Tensor) -> None:
        if not once:
            once.append(1)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    first.register_hook(full)  # the UNet's first layer has its gradient last


def test_a_backward_pass_that_steps_is_not_made_again(tmp_path):
    settings = TrainingSettings(learning_rate=1e-3, fused_backward="yes")
    rigged = Rigged(tmp_path, 4, 4, batch=2, training=settings)
    in_the_middle_of_the_backward_pass(rigged, [])
    before = rigged.rig.bits()
    with pytest.raises(GoBack, match="step 1"):
        rigged.engine.step(0)
    after = rigged.rig.bits()
    assert any(not torch.equal(after[name], before[name]) for name in before), "some were stepped"
    assert read_rungs(tmp_path) == {"gradient_checkpointing": "yes"} and rigged.said == []


def test_a_forward_pass_before_it_is_made_again(tmp_path):
    settings = TrainingSettings(learning_rate=1e-3, fused_backward="yes")
    plain = make_rig(tmp_path / "plain", batch=2, training=settings)
    rigged = Rigged(tmp_path, 2, 4, batch=2, training=settings)
    assert rigged.train(2) == plain.train(0, 2)
    assert rigged.rungs == [{"step": 0, "gradient_checkpointing": "yes"}]


def test_several_processes_end_and_are_resumed_in_less(tmp_path):
    rigged = Rigged(tmp_path, 2, 4, batch=2)
    rigged.engine._processes = Processes(1, 2)
    with pytest.raises(RunFailed, match="process 1: memory ran out in step 1") as failed:
        rigged.engine.step(0)
    assert "`resume` goes on" in failed.value.remedy and "gradient_checkpointing" in failed.value.remedy
    assert read_rungs(tmp_path) == {"gradient_checkpointing": "yes"}


def test_who_is_left_by_another_process_says_that_memory_ran_out_there(tmp_path):
    rigged = Rigged(tmp_path, 4, 4, batch=2)
    rigged.engine._processes = Processes(0, 2)

    def left(*_: object) -> None:
        keep_rung(tmp_path, {"gradient_checkpointing": "yes"})  # by the other one, before it ended
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31337")

    rigged.unet.register_forward_pre_hook(left)
    with pytest.raises(RunFailed, match="memory ran out in another process in step 1"):
        rigged.engine.step(0)


# ---- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The checkpoint of the quick run where memory never runs out."""
    folder = tmp_path_factory.mktemp("plain")
    assert dreambooth("train", config(folder)) == 0
    return folder / "out" / "sks.safetensors"


def images_that_fit(monkeypatch, most: Callable[[Denoiser], int]) -> list[int]:
    """As many images go through the model at once as `most` says; the sizes of the forwards that did."""
    passed: list[int] = []
    forward = Denoiser.forward

    def allocating(self, noisy, *rest):
        if noisy.is_meta:  # a plan counts without memory
            return forward(self, noisy, *rest)
        if len(noisy) > most(self):
            raise FULL.with_traceback(None)
        passed.append(len(noisy))
        return forward(self, noisy, *rest)

    monkeypatch.setattr(Denoiser, "forward", allocating)
    return passed


def one_if_computed_twice(denoiser: Denoiser) -> int:
    modules = denoiser.unet.modules()
    return int(any(getattr(module, "gradient_checkpointing", False) for module in modules))


def test_a_run_steps_down_to_its_end_and_a_resumed_one_begins_there(tmp_path, monkeypatch):
    passed = images_that_fit(monkeypatch, one_if_computed_twice)
    at_event(monkeypatch, "checkpoint", lambda found: found.order("stop"), step=2)
    assert dreambooth("train", config(tmp_path, checkpointing_steps=2)) == 130
    run = run_in(tmp_path)
    assert [event["memory"] for event in events(run, "warning")] == [
        {"step": 0, "gradient_checkpointing": "yes"},
        {"step": 0, "forward_batch_size": 1},
    ]
    assert json.loads((run.path / NAME).read_text()) == {
        "gradient_checkpointing": "yes",
        "forward_batch_size": 1,
    }
    assert dreambooth("resume", run.path) == 0
    assert passed and set(passed) == {1}
    (again,) = events(run, "warning")[2:]
    assert "memory ran out in this run before" in again["text"] and "forward_batch_size: 1" in again["text"]
    assert [event["step"] for event in events(run, "step")] == [1, 2, 3, 4], (
        "no step was lost, none made twice"
    )
    assert is_finite(tmp_path / "out" / "sks.safetensors")


def test_a_run_that_only_computes_blocks_twice_comes_to_the_same_bits(tmp_path, plain, monkeypatch):
    images_that_fit(monkeypatch, lambda denoiser: 2 * one_if_computed_twice(denoiser))
    assert dreambooth("train", config(tmp_path)) == 0
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


@pytest.mark.parametrize(
    ("failing", "place", "steps"),
    [(4, "the state of step 2", [1, 2, 3, 3, 4]), (2, "its beginning", [1, 1, 2, 3, 4])],
    ids=["after a save", "before the first save"],
)
def test_a_run_that_may_have_stepped_some_weights_goes_back(failing, place, steps, tmp_path, monkeypatch):
    backward = torch.Tensor.backward
    calls: list[int] = []

    def full_once(self, *rest, **more):
        backward(self, *rest, **more)
        calls.append(1)
        if len(calls) == failing:
            raise FULL

    monkeypatch.setattr(torch.Tensor, "backward", full_once)
    assert dreambooth("train", config(tmp_path, fused_backward="yes", checkpointing_steps=2)) == 0
    run = run_in(tmp_path)
    (said,) = events(run, "warning")
    assert f"goes back to {place}" in said["text"]
    assert said["memory"] == {"step": failing // 4 * 2, "gradient_checkpointing": "yes"}
    made = events(run, "step")
    assert [event["step"] for event in made] == steps
    twice = [event["loss"] for event in made if event["step"] == failing - 1]
    assert len(twice) == 2 and twice[0] == twice[1], "the same step, from the same weights"


# ---- beside the steps --------------------------------------------------------------------------------------------


def pictures_that_fit(monkeypatch, module, most: int) -> list[int]:
    """So many pictures are made at once by a module's `sample`; the sizes of the groups that were."""
    made: list[int] = []
    sample = module.sample

    def allocating(model, tokenizer, requests, *, batch_size, **more):
        if min(batch_size, len(requests)) > most:
            raise FULL
        made.append(len(requests))
        yield from sample(model, tokenizer, requests, batch_size=batch_size, **more)

    monkeypatch.setattr(module, "sample", allocating)
    return made


def test_class_images_are_made_in_smaller_groups_and_by_a_resumed_run_too(tmp_path, monkeypatch):
    made = pictures_that_fit(monkeypatch, class_images, 2)
    at_event(monkeypatch, "progress", lambda found: found.order("stop"), name="class images", done=3)
    settings = config(tmp_path, num_class_images=5, sample_batch_size=5)
    assert dreambooth("train", settings) == 130
    run = run_in(tmp_path)
    assert [event["memory"] for event in events(run, "warning")] == [
        {"sample_batch_size": 3},
        {"sample_batch_size": 2},
    ]
    assert dreambooth("resume", run.path) == 0
    assert max(made) == 2
    folder = next((tmp_path / "runs" / "class_images").glob("*/*"))
    assert len(list(folder.glob("class-*.png"))) == 5
    told = [event["done"] for event in events(run, "progress") if event["name"] == "class images"]
    assert told[:3] == [0, 1, 2] and max(told) <= 5


def test_class_images_that_do_not_fit_one_by_one_end_the_run_with_what_helps(tmp_path, monkeypatch, capsys):
    pictures_that_fit(monkeypatch, class_images, 0)
    assert dreambooth("train", config(tmp_path, sample_batch_size=2)) == 1
    said = capsys.readouterr().err
    assert "memory ran out while class images were made" in said and "class_data_dir" in said
    assert "Traceback" not in said


def test_a_checkpoint_on_the_way_that_does_not_fit_is_a_warning(tmp_path):
    rig = make_rig(tmp_path)

    def full(path, trained):
        raise FULL

    rig.keeper._write_checkpoint = full
    rig.keeper.export(2)
    ((event, fields),) = rig.events
    assert event == "warning" and "no checkpoint of step 2" in fields["text"]


def test_sample_pictures_that_do_not_fit_together_are_made_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "STEPS", 1)
    made = pictures_that_fit(monkeypatch, previews, 1)
    settings = config(tmp_path, num_validation_images=2, sample_batch_size=2)
    assert dreambooth("train", settings) == 0
    run = run_in(tmp_path)
    assert [event["step"] for event in events(run, "sample")] == [0, 0, 4, 4]
    assert made == [2, 2]
    assert "one by one" in events(run, "warning")[0]["text"]
