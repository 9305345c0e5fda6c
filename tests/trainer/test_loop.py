import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from dreambooth.shared.errors import RunFailed
from dreambooth.shared.runfolder import Command
from dreambooth.trainer.loop import MOST_SKIPS_IN_A_ROW, Cadence, Outcome, train
from dreambooth.trainer.objectives import Losses

LOSSES = Losses(*torch.zeros(3))


@dataclass
class Story:
    """Engine, keeper, inbox and log in one: writes down what happens, in order."""

    skips: dict[int, int] = field(default_factory=dict)  # step → how often it overflows
    nan_at: int | None = None
    commands_at: dict[int, list[str]] = field(default_factory=dict)
    stop_at: int | None = None
    happened: list[str] = field(default_factory=list)
    rate: float = 1.0
    step_now: int = 0
    waiting: list[Command] = field(default_factory=list)
    failed: bool = False

    # engine

    def step(self, step: int) -> Losses | None:
        if self.failed:
            raise RunFailed("NaN")
        if self.skips.get(step, 0):
            self.skips[step] -= 1
            self.happened.append(f"skip {step}")
            return None
        self.failed = step == self.nan_at
        self.happened.append(f"step {step}")
        self.step_now = step + 1
        return LOSSES

    def check_finite(self) -> None:
        if self.failed:
            raise RunFailed("NaN")

    # keeper

    def _act(self, name: str, step: int) -> None:
        assert step == self.step_now
        self.happened.append(f"{name} {step}")

    def save(self, step: int) -> None:
        self._act("save", step)

    def export(self, step: int) -> None:
        self._act("export", step)

    def sample(self, step: int) -> None:
        self._act("sample", step)

    # inbox

    def should_stop(self) -> bool:
        orders = self.commands_at.pop(self.step_now, [])
        self.waiting += [Command(f"{self.step_now}-{n}", do, Path()) for n, do in enumerate(orders)]
        return self.stop_at == self.step_now

    def commands(self) -> list[Command]:
        return list(self.waiting)

    def answer(self, command: Command) -> None:
        self.happened.append(f"ack {command.do}")
        self.waiting.remove(command)

    # log

    def start(self, step: int) -> None:
        self.step_now = step

    def add(self, step: int, losses: Losses, rate: float) -> None:
        self.happened.append(f"log {step}")

    def paused(self):
        return contextlib.nullcontext()

    def tell(self, cadence: Cadence, start: int = 0) -> Outcome:
        return train(self, self, self, self, cadence, start)  # type: ignore[arg-type]

    @property
    def without_log(self) -> list[str]:
        return [what for what in self.happened if not what.startswith("log")]


def test_steps_are_made_and_logged_one_after_the_other_and_the_end_is_saved():
    story = Story()
    assert story.tell(Cadence(3, save=0, export=0, sample=0)) is Outcome.FINISHED
    assert story.happened == ["step 0", "log 1", "step 1", "log 2", "step 2", "log 3", "save 3"]


def test_what_is_due_comes_between_the_steps_the_state_first():
    story = Story()
    story.tell(Cadence(6, save=2, export=3, sample=2))
    assert story.without_log == [
        "sample 0", "step 0", "step 1", "save 2", "sample 2", "step 2", "export 3", "step 3",
        "save 4", "sample 4", "step 4", "step 5", "save 6",
    ]  # fmt: skip


def test_pictures_of_the_untrained_model_come_before_the_first_step_alone():
    story = Story()
    story.tell(Cadence(3, save=0, export=0, sample=0, sample_first=True))
    assert story.without_log == ["sample 0", "step 0", "step 1", "step 2", "save 3"]
    resumed = Story()
    resumed.tell(Cadence(3, save=0, export=0, sample=0, sample_first=True), start=2)
    assert resumed.without_log == ["step 2", "save 3"]


def test_a_stop_saves_and_leaves_without_samples():
    story = Story(stop_at=2)
    assert story.tell(Cadence(9, save=0, export=0, sample=1)) is Outcome.STOPPED
    assert story.without_log[-3:] == ["sample 1", "step 1", "save 2"]


def test_a_stop_before_the_first_step_saves_too():
    story = Story(stop_at=0)
    assert story.tell(Cadence(9, save=5, export=5, sample=0)) is Outcome.STOPPED
    assert story.happened == ["save 0"]


def test_a_stop_at_the_last_step_is_an_end():
    story = Story(stop_at=2)
    assert story.tell(Cadence(2, save=0, export=0, sample=0)) is Outcome.FINISHED


def test_a_finished_run_that_is_resumed_makes_no_step():
    story = Story()
    assert story.tell(Cadence(4, save=2, export=2, sample=2), start=4) is Outcome.FINISHED
    assert story.happened == ["save 4"]


def test_after_an_interruption_that_steps_export_and_samples_are_asked_for_again_but_not_its_state():
    """They came after the state that it goes on from, so nobody knows; the keeper does."""
    story = Story()
    story.tell(Cadence(6, save=2, export=2, sample=2), start=2)
    assert story.without_log[:4] == ["export 2", "sample 2", "step 2", "step 3"]


def test_commands_are_obeyed_in_their_order_each_acknowledged_when_it_is_done():
    story = Story(commands_at={1: ["export", "save", "sample"], 2: ["save"]})
    story.tell(Cadence(3, save=0, export=0, sample=0))
    assert story.without_log == [
        "step 0", "export 1", "ack export", "save 1", "ack save", "sample 1", "ack sample",
        "step 1", "save 2", "ack save", "step 2", "save 3",
    ]  # fmt: skip


@pytest.mark.parametrize("last", [{"stop_at": 1}, {}])
def test_a_command_that_comes_with_the_stop_or_at_the_end_is_obeyed(last):
    story = Story(commands_at={1: ["export"]}, **last)
    story.tell(Cadence(1 if not last else 5, save=0, export=0, sample=0))
    assert story.without_log == ["step 0", "save 1", "export 1", "ack export"]


# ---- fp16 --------------------------------------------------------------------------------------------------------


def test_a_skipped_step_is_made_again_and_neither_counted_nor_logged_nor_what_was_due_repeated():
    story = Story(skips={2: 3})
    story.tell(Cadence(4, save=2, export=2, sample=2))
    assert story.without_log == [
        "sample 0", "step 0", "step 1", "save 2", "export 2", "sample 2",
        "skip 2", "skip 2", "skip 2", "step 2", "step 3", "save 4",
    ]  # fmt: skip
    assert [what for what in story.happened if what.startswith("log")] == ["log 1", "log 2", "log 3", "log 4"]


def test_a_stop_is_heard_between_skipped_steps():
    story = Story(skips={1: 99})
    calls = iter([False, False, False, True])
    story.should_stop = lambda: next(calls)  # type: ignore[method-assign]
    assert story.tell(Cadence(4, save=0, export=1, sample=0)) is Outcome.STOPPED
    assert story.without_log == ["step 0", "export 1", "skip 1", "skip 1", "save 1"]


def test_too_many_skips_in_a_row_end_the_run_and_say_what_to_do():
    story = Story(skips={1: 10**6})
    with pytest.raises(RunFailed, match=r"25 times in a row step 2 overflowed") as failure:
        story.tell(Cadence(4, save=0, export=0, sample=0))
    assert story.without_log == ["step 0"] + ["skip 1"] * MOST_SKIPS_IN_A_ROW
    assert "bf16" in failure.value.remedy


def test_skips_that_are_not_in_a_row_are_no_failure():
    story = Story(skips=dict.fromkeys(range(4), MOST_SKIPS_IN_A_ROW - 1))
    assert story.tell(Cadence(4, save=0, export=0, sample=0)) is Outcome.FINISHED


# ---- NaN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cadence", [Cadence(3, 0, 0, 0), Cadence(9, 3, 0, 0), Cadence(9, 0, 3, 0), Cadence(9, 0, 0, 3)]
)
def test_nothing_is_saved_exported_or_drawn_after_a_step_that_was_not_finite(cadence):
    story = Story(nan_at=2)
    with pytest.raises(RunFailed):
        story.tell(cadence)
    assert [what for what in story.without_log if what != "sample 0"] == ["step 0", "step 1", "step 2"]


def test_a_step_that_was_not_finite_ends_the_run_within_one_step():
    story = Story(nan_at=2)
    with pytest.raises(RunFailed):
        story.tell(Cadence(9, 0, 0, 0))
    assert story.without_log == ["step 0", "step 1", "step 2"]
    assert story.happened[-1] == "log 3"


def test_commands_do_not_see_weights_of_a_failed_run_as_good():
    story = Story(nan_at=0, commands_at={1: ["export"]})
    with pytest.raises(RunFailed):
        story.tell(Cadence(9, 0, 0, 0))
    assert story.without_log == ["step 0"]


def test_the_clock_stands_while_things_are_kept():
    within = []

    @contextlib.contextmanager
    def paused():
        within.append(len(story.happened))
        yield
        within.append(len(story.happened))

    story = Story()
    story.paused = paused  # type: ignore[method-assign]
    story.tell(Cadence(4, save=2, export=2, sample=0))
    at = story.happened.index("save 2")
    assert within[:2] == [at, at + 2]
    assert len(within) == 4
