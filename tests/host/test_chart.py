"""The chart of the loss: small, and true to the steps."""

from __future__ import annotations

import random

import pytest

from dreambooth.host.chart import MOST, SMOOTHING, Chart


def test_ten_thousand_steps_become_at_most_four_hundred_points():
    chart, random_loss = Chart(), random.Random(1)
    for step in range(1, 10_001):
        chart.add(step, random_loss.random(), 0.5, 0.5)
        assert len(chart.as_json()["steps"]) <= MOST
    made = chart.as_json()
    assert len(made["steps"]) >= MOST // 3
    assert {len(line) for line in made.values()} == {len(made["steps"])}
    assert made["steps"] == sorted(set(made["steps"]))
    assert made["steps"][-1] == 10_000, "the newest step, whatever was thinned"


def test_few_steps_are_all_there():
    chart = Chart()
    for step in range(1, 6):
        chart.add(step, float(step), None, None)
    made = chart.as_json()
    assert made["steps"] == [1, 2, 3, 4, 5]
    assert made["loss"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("steps", [400, 401, 1000, 5000])
def test_every_point_is_a_step_as_it_was_and_no_peak_is_lost(steps):
    chart, random_loss = Chart(), random.Random(1)
    losses = [random_loss.random() for _ in range(steps)]
    peak, valley = steps // 3, steps // 2
    losses[peak - 1], losses[valley - 1] = 7.6, -0.5
    for step, loss in enumerate(losses, 1):
        chart.add(step, loss, loss, 0)
    found = dict(zip(*(chart.as_json()[name] for name in ("steps", "loss")), strict=True))
    assert found == {step: pytest.approx(losses[step - 1], rel=1e-4) for step in found}
    assert (found[peak], found[valley]) == (7.6, -0.5)
    for begin in range(0, steps - chart.stride, chart.stride):  # and so in every stretch
        stretch = losses[begin : begin + chart.stride]
        kept = [loss for step, loss in found.items() if begin < step <= begin + chart.stride]
        assert (min(kept), max(kept)) == pytest.approx((min(stretch), max(stretch)), rel=1e-4)


def test_a_long_run_that_goes_on_from_its_state_replaces_what_followed():
    chart, random_loss = Chart(), random.Random(3)
    for step in range(1, 5001):
        chart.add(step, random_loss.random(), None, None)
    for step in range(4001, 4501):
        chart.add(step, 2.0 + random_loss.random(), None, None)
    made = chart.as_json()
    after = [loss for step, loss in zip(made["steps"], made["loss"], strict=True) if step > 4000]
    assert made["steps"] == sorted(set(made["steps"])) and made["steps"][-1] == 4500
    assert min(after) >= 2.0 and max(made["loss"][: -len(after)]) < 1.0
    assert made["smooth"][-1] == pytest.approx(2.5, abs=0.1)


def test_the_smoothed_line_is_an_exponential_average_with_its_beginning_corrected():
    chart, losses = Chart(), [3.0, 1.0, 2.0, 5.0]
    for step, loss in enumerate(losses, 1):
        chart.add(step, loss, loss, 0)
    weights = [(1 - SMOOTHING) * SMOOTHING**age for age in reversed(range(len(losses)))]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert chart.as_json()["smooth"][-1] == pytest.approx(expected, rel=1e-4)


def test_a_run_without_prior_has_neither_of_the_parts_lines():
    chart = Chart()
    chart.add(1, 1.0, 1.0, 0.0)
    made = chart.as_json()
    assert (made["instance"], made["prior"]) == ([], [])


def test_the_parts_are_smoothed_as_their_sum_is():
    chart, random_loss = Chart(), random.Random(2)
    for step in range(1, 1001):
        instance, prior = random_loss.random(), random_loss.random()
        chart.add(step, instance + prior, instance, prior)
    made = chart.as_json()
    sums = [one + other for one, other in zip(made["instance"], made["prior"], strict=True)]
    assert sums == pytest.approx(made["smooth"], rel=1e-4)


def test_a_loss_that_is_no_number_leaves_a_gap():
    chart = Chart()
    for step, loss in ((1, 1.0), (2, None), (3, float("nan")), (4, 2.0)):
        chart.add(step, loss, loss, None)
    assert chart.as_json()["loss"] == [1.0, None, None, 2.0]
    assert None not in chart.as_json()["smooth"]


def test_a_resumed_run_replaces_what_followed_its_state():
    chart = Chart()
    for step in range(1, 11):
        chart.add(step, 1.0, 1.0, 0)
    for step in range(6, 9):
        chart.add(step, 9.0, 9.0, 0)
    made = chart.as_json()
    assert made["steps"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert made["loss"] == [1.0] * 5 + [9.0] * 3
