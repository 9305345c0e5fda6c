"""The training loop. It knows steps and what happens between them; who does it is handed in."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from dreambooth.shared.errors import FailsAgain
from dreambooth.shared.runfolder import Command
from dreambooth.trainer.objectives import Losses
from dreambooth.trainer.steplog import StepLog

# An fp16 loss scaler halves its scale at every overflow: from 2^16 it is below 2^-9 after that many.
MOST_SKIPS_IN_A_ROW = 25


class Engine(Protocol):
    """Makes steps. `step` returns None when the loss scaler skipped it: the same step is to be made again."""

    def step(self, step: int) -> Losses | None: ...
    def check_finite(self) -> None: ...
    @property
    def rate(self) -> float: ...


class Keeper(Protocol):
    """Does what happens once in a while; `step` counts finished steps.

    After an interruption at a step it is asked again for that step's export and samples, and makes what is missing.
    """

    def save(self, step: int) -> None: ...
    def export(self, step: int) -> None: ...
    def sample(self, step: int) -> None: ...


class Orders(Protocol):
    """What the outside wants; see `control.Inbox`."""

    def should_stop(self) -> bool: ...
    def commands(self) -> list[Command]: ...
    def answer(self, command: Command) -> None: ...


@dataclass(frozen=True)
class Cadence:
    """How often what happens, in steps; 0 is never (but a state is always saved at the end).

    `sample_first`: also before the first step, so that every later picture has the untrained model's beside it.
    """

    steps: int
    save: int
    export: int
    sample: int
    sample_first: bool = False

    def due(self, step: int, *, fresh: bool, stop: bool) -> list[str]:
        """What is to be done after `step` steps, in order: the state first, since all else may fail.

        `fresh`: the step was made just now, by this process. The end has its own export and samples.
        """
        last = step >= self.steps
        wanted = {
            "save": last or stop or (fresh and _falls_on(step, self.save)),
            "export": step > 0 and not last and _falls_on(step, self.export),
            "sample": not last
            and not stop
            and (_falls_on(step, self.sample) or (step == 0 and self.sample_first)),
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]


class Outcome(enum.Enum):
    FINISHED = "finished"
    STOPPED = "stopped"


def train(
    engine: Engine, keeper: Keeper, inbox: Orders, log: StepLog, cadence: Cadence, start: int = 0
) -> Outcome:
    """Trains from finished step `start` to `cadence.steps`. Raises RunFailed at a NaN loss."""
    acts = {"save": keeper.save, "export": keeper.export, "sample": keeper.sample}
    step, skipped = start, 0
    log.start(step)
    while True:
        stop = inbox.should_stop()
        due = cadence.due(step, fresh=step > start, stop=stop)
        if skipped:  # a step that overflowed is made again: what was due before it is done
            due = ["save"] if stop else []
        commands = inbox.commands()
        if due or commands:
            engine.check_finite()
            with log.paused():
                for name in due:
                    acts[name](step)
                for command in commands:
                    acts[command.do](step)
                    inbox.answer(command)
        if stop or step >= cadence.steps:
            return Outcome.FINISHED if step >= cadence.steps else Outcome.STOPPED

        losses = engine.step(step)
        if losses is None:
            skipped += 1
            _check_skips(skipped, step)
        else:
            skipped, step = 0, step + 1
            log.add(step, losses, engine.rate)


def _check_skips(skipped: int, step: int) -> None:
    if skipped >= MOST_SKIPS_IN_A_ROW:
        raise FailsAgain(
            f"{skipped} times in a row step {step + 1} overflowed in fp16",
            remedy="train anew with mixed_precision: bf16 (or no), or with a lower learning rate",
            change="mixed_precision=no",
        )


def _falls_on(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
