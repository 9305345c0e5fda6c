"""The training loop. It knows steps and what happens between them; who does it is handed in."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from dreambooth.shared.errors import RunFailed
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
    """Does what happens once in a while; `step` counts finished steps."""

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
    """How often what happens, in steps; 0 is never (but a state is always saved at the end)."""

    steps: int
    save: int
    export: int
    sample: int


class Outcome(enum.Enum):
    FINISHED = "finished"
    STOPPED = "stopped"


def train(
    engine: Engine, keeper: Keeper, inbox: Orders, log: StepLog, cadence: Cadence, start: int = 0
) -> Outcome:
    """Trains from finished step `start` to `cadence.steps`. Raises RunFailed at a NaN loss."""
    step, skipped = start, 0
    log.start(step)
    while True:
        done = step >= cadence.steps
        stop = inbox.should_stop()
        fresh = step > start  # what was due at `start` was done before the run was interrupted there
        if done or stop or (fresh and _due(step, cadence.save)):
            engine.check_finite()
            log.flush()
            keeper.save(step)
        if fresh and not done and _due(step, cadence.export):
            keeper.export(step)
        if (fresh or step == 0) and not done and not stop and _due(step, cadence.sample):
            keeper.sample(step)
        for command in inbox.commands():
            engine.check_finite()
            log.flush()
            {"save": keeper.save, "export": keeper.export, "sample": keeper.sample}[command.do](step)
            inbox.answer(command)
        if done or stop:
            return Outcome.FINISHED if done else Outcome.STOPPED

        losses = engine.step(step)
        if losses is None:
            skipped += 1
            if skipped >= MOST_SKIPS_IN_A_ROW:
                raise RunFailed(
                    f"{skipped} steps in a row overflowed in fp16 at step {step + 1}",
                    remedy="use mixed_precision: bf16 (or no), or a lower learning rate; `resume` goes on from the last one",
                )
            continue
        skipped, step = 0, step + 1
        log.add(step, losses, engine.rate)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
