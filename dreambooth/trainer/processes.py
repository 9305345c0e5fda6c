"""The processes of one run: one, or as many as `accelerate launch` started. The first one keeps the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dreambooth.shared.runfolder import Command
from dreambooth.trainer.control import Inbox, StopNow
from dreambooth.trainer.loop import Keeper

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's place among all that train together."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, value: T) -> T:
        """The first process's `value`, in all of them; every process has to call it."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [value]
        broadcast_object_list(box, from_process=0)
        shared: T = box[0]
        return shared

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            from accelerate.state import PartialState

            PartialState().wait_for_everyone()


ALONE = Processes()


def join_processes() -> Processes:
    """The processes that were started together (`accelerate launch`, torchrun); alone, nothing is imported."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    import torch
    from accelerate.state import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # takes the card that is this process's own
    return Processes(state.process_index, state.num_processes)


class SharedInbox:
    """The first process's orders, heard by all at the same step, so that none waits for one that has left."""

    def __init__(self, processes: Processes, inbox: Inbox | None) -> None:
        self._processes = processes
        self._inbox = inbox

    def should_stop(self) -> bool:
        """As `Inbox.should_stop`; every process has to call it."""
        answer: bool | None = False
        if self._inbox is not None:
            try:
                answer = self._inbox.should_stop()
            except StopNow:
                answer = None
        answer = self._processes.share(answer)
        if answer is None:
            raise StopNow
        return answer

    def commands(self) -> list[Command]:
        """As `Inbox.commands`; every process has to call it."""
        return self._processes.share(self._inbox.commands() if self._inbox is not None else [])

    def answer(self, command: Command) -> None:
        if self._inbox is not None:
            self._inbox.answer(command)


class SharedKeeper:
    """The first process keeps things; the others wait until it is done."""

    def __init__(self, processes: Processes, keeper: Keeper) -> None:
        self._processes = processes
        self._keeper = keeper

    def _by_main(self, act: Callable[[int], None], step: int) -> None:
        if self._processes.is_main:
            act(step)
        self._processes.wait()

    def save(self, step: int) -> None:
        self._by_main(self._keeper.save, step)

    def export(self, step: int) -> None:
        self._by_main(self._keeper.export, step)

    def sample(self, step: int) -> None:
        self._by_main(self._keeper.sample, step)
