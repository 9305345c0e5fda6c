"""The processes of one run: one, or as many as `accelerate launch` started. The first one keeps the run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.runfolder import Command
from dreambooth.shared.settings import Settings
from dreambooth.trainer.control import Inbox, StopNow
from dreambooth.trainer.loop import Keeper

T = TypeVar("T")


class OtherEnded(DreamboothError):
    """Another process of the run ended, so this one does too, with the same exit code; that one says why."""

    def __init__(self, own: int, other: int, exit_code: int) -> None:
        super().__init__(
            f"process {own} ends, since process {other} did", remedy=f"see what process {other} says"
        )
        self.exit_code = exit_code


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

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block of which every process does its part. None goes on before all are through, and where one failed
        all end at once: that one with its own error, the others with `OtherEnded`; none waits for one that is gone.

        Every process has to come here, whatever it does in the block.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is raised as soon as the others know
            failure = error
        codes = self._all_exit_codes(failure)
        if failure is not None:
            raise failure
        for index, code in enumerate(codes):
            if code:
                raise OtherEnded(self.index, index, code)

    def _all_exit_codes(self, failure: Exception | None) -> list[int]:
        """With which code each process is about to end; 0 goes on."""
        if self.count == 1:
            return []
        from accelerate.utils import gather_object

        codes: list[int] = gather_object([0 if failure is None else getattr(failure, "exit_code", 1)])
        return codes


ALONE = Processes()


def join_processes() -> Processes:
    """The processes that were started together (`accelerate launch`, torchrun); alone, nothing is imported.

    Raises InputError if there are more of them than cards; the first one of a machine says so, the others just end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    import torch

    try:
        check_cards(os.environ, torch.cuda.device_count())
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(error.exit_code) from error
        raise
    from accelerate.state import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # takes the card that is this process's own
    return Processes(state.process_index, state.num_processes)


def check_cards(environ: Mapping[str, str], cards: int) -> None:
    """Raises InputError if a machine's processes are more than its cards; without cards its processor trains."""
    here = int(environ.get("LOCAL_WORLD_SIZE") or int(environ.get("LOCAL_RANK", "0")) + 1)
    on_processor = environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if cards == 0 or on_processor or here <= cards:
        return
    there = "one card is" if cards == 1 else f"{cards} cards are"
    raise InputError(
        f"{here} processes were started on this machine, and {there} there",
        where="accelerate launch",
        remedy=f"start it with --num_processes {cards}, or without accelerate"
        if cards == 1
        else f"start it with --num_processes {cards} or fewer",
    )


def shared_out(settings: Settings, before: int, now: int) -> Settings:
    """The settings by which `now` processes make the steps that `before` ones began: of the same images.

    Raises InputError if a step's images cannot be shared out among them.
    """
    training = settings.training
    images = training.train_batch_size * training.gradient_accumulation_steps * before
    if before == now:
        return settings
    own, rest = divmod(images, now)
    if rest:
        able = [str(count) for count in range(1, images + 1) if images % count == 0]
        raise InputError(
            f"each step of this run is made of {images} {'image' if images == 1 else 'images'}, which {now} processes "
            "cannot share",
            where="accelerate launch",
            remedy=f"start it with --num_processes {', '.join(able[:-1])} or {able[-1]}"
            if len(able) > 1
            else "resume it without accelerate",
        )
    batch = max(size for size in range(1, min(own, training.train_batch_size) + 1) if own % size == 0)
    made = replace(training, train_batch_size=batch, gradient_accumulation_steps=own // batch)
    return replace(settings, training=made)


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
    """The first process keeps things; the others wait until it is done, and end with it where it fails."""

    def __init__(self, processes: Processes, keeper: Keeper) -> None:
        self._processes = processes
        self._keeper = keeper

    def save(self, step: int) -> None:
        with self._processes.together():
            if self._processes.is_main:
                self._keeper.save(step)

    def export(self, step: int) -> None:
        with self._processes.together():
            if self._processes.is_main:
                self._keeper.export(step)

    def sample(self, step: int) -> None:
        with self._processes.together():
            if self._processes.is_main:
                self._keeper.sample(step)
