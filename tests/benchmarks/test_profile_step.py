"""The watch around a step's parts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from profile_step import LOOP, PARTS, WHOLE, Watch, profile, table


def test_a_part_s_time_is_without_that_of_the_parts_inside_it() -> None:
    clock = [0.0]

    def spend(seconds: float) -> None:
        clock[0] += seconds

    watch = Watch(lambda: clock[0])
    inner = watch.around("forward", lambda: spend(3))

    def outer() -> None:
        spend(1)
        inner()
        spend(0.5)

    loss = watch.around("loss", outer)

    def step() -> None:
        spend(0.25)
        loss()

    medians = profile(step, watch, seconds=0)
    assert medians[PARTS["forward"]] == 3 and medians[PARTS["loss"]] == 1.5
    assert medians[LOOP] == 0.25 and medians[WHOLE] == 4.75
    lines = table(medians).splitlines()
    assert len(lines) == len(PARTS) + 2 and lines[-1].endswith("100.0 %")
