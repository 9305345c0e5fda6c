"""Two processes of one thread each share the work of a training step.

Threads wait for each other thousands of times a step, which makes them ten times slower as soon as another
program wants one of the cores. Processes wait once a step.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

import torch
import torch.multiprocessing


class Task(Protocol):
    """What is trained. It is pickled, so it holds seeds instead of generators."""

    def parameters(self) -> list[torch.nn.Parameter]: ...

    def loss(self, step: int, half: int) -> torch.Tensor:
        """The mean loss of half 0 or 1 of a step's batch: a pure function of its arguments and the weights."""
        ...


class Halves:
    """Computes half of each batch here and half in a second process that sees the same weights' memory."""

    def __init__(self, task: Task) -> None:
        context: Any = torch.multiprocessing.get_context("spawn")
        self.task, self.parameters = task, task.parameters()
        for parameter in self.parameters:
            _shared(parameter.data)
            parameter.grad = torch.zeros_like(parameter)
        self.others = [_shared(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.loss, self.step = _shared(torch.zeros(())), context.Value("q", 0)
        self.go, self.done = context.Semaphore(0), context.Semaphore(0)
        shared = (task, self.others, self.loss, self.step, self.go, self.done)
        self.process = context.Process(target=_second_half, args=shared, daemon=True)

    def __enter__(self) -> Halves:
        torch.set_num_threads(1)
        self.process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.join()

    def backward(self, step: int) -> float:
        """Leave the gradient of the whole batch in the parameters and return its loss."""
        self.step.value = step
        self.go.release()
        mine = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_zero_(mine)
        loss = self.task.loss(step, 0)
        torch.autograd.backward(loss)
        while not self.done.acquire(timeout=5):
            if not self.process.is_alive():
                raise RuntimeError("the second process has died")
        torch._foreach_add_(mine, self.others)
        torch._foreach_mul_(mine, 0.5)
        return (float(loss.detach()) + float(self.loss)) / 2


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """Move the tensor's memory to where the second process sees it."""
    untyped: Any = tensor
    untyped.share_memory_()
    return tensor


def _second_half(
    task: Task, gradients: list[torch.Tensor], loss: torch.Tensor, step: Any, go: Any, done: Any
) -> None:
    torch.set_num_threads(1)
    for parameter, gradient in zip(task.parameters(), gradients, strict=True):
        parameter.grad = gradient
    while _told(go):
        torch._foreach_zero_(gradients)
        here = task.loss(step.value, 1)
        torch.autograd.backward(here)
        loss.copy_(here.detach())
        done.release()


def _told(go: Any) -> bool:
    """Wait for the next step; false when the first process is gone."""
    parent = torch.multiprocessing.parent_process()
    while not go.acquire(timeout=5):
        if parent is None or not parent.is_alive():
            return False
    return True
