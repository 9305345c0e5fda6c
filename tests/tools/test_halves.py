from __future__ import annotations

from dataclasses import dataclass

import torch

from tools.base.halves import Halves


@dataclass(frozen=True)
class Regression:
    weight: torch.nn.Parameter
    inputs: torch.Tensor

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.weight]

    def loss(self, step: int, half: int) -> torch.Tensor:
        mine = self.inputs[step].chunk(2)[half]
        return (mine @ self.weight).square().mean()


def test_two_halves_give_the_gradient_of_the_whole_batch() -> None:
    inputs = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    task = Regression(torch.nn.Parameter(torch.ones(5)), inputs)
    threads = torch.get_num_threads()
    with Halves(task) as halves:
        for step in range(3):
            loss = halves.backward(step)
            expected = torch.nn.Parameter(task.weight.detach().clone())
            whole = (inputs[step] @ expected).square().mean()
            whole.backward()
            torch.testing.assert_close(torch.tensor(loss), whole.detach())
            torch.testing.assert_close(task.weight.grad, expected.grad)
            with torch.no_grad():
                task.weight.sub_(0.1 * task.weight.grad)  # the other process sees the new weights
    torch.set_num_threads(threads)
