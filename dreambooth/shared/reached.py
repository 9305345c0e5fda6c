"""How far a run came and how much of that is kept, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from .runfolder import RunFolder, last_word, saved_step


@dataclass(frozen=True)
class Reached:
    """`step` was the last one made, `saved` is the newest of which there is a state (0: none)."""

    step: int
    saved: int

    @property
    def lost(self) -> int:
        """Steps that are to be made again."""
        return max(0, self.step - self.saved)

    def loss(self) -> str:
        """What an end without a save costs, as a part of a sentence; empty if nothing."""
        if not self.lost:
            return ""
        if not self.saved:
            return f"{_steps(self.lost)} lost, since nothing was saved yet"
        return f"{_steps(self.lost)} lost, those since step {self.saved}"

    def beginning(self) -> str:
        """Where `resume` begins, as a part of a sentence."""
        if not self.saved:
            return "begins with the first step"
        return f"goes on from step {self.saved}, the last that was saved"


def _steps(count: int) -> str:
    return "1 step is" if count == 1 else f"{count} steps are"


def reached(run: RunFolder) -> Reached:
    """How far a run came, from the end of its events and its states."""
    saved = saved_step(run)
    return Reached(max(last_word(run).step, saved), saved)
