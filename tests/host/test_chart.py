"""The chart of the loss: small, and true to the steps."""

from __future__ import annotations

import random

import pytest

from dreambooth.host.chart import MOST, SMOOTHING, Chart


def test_ten_thousand_steps_become_at_most_four_hundred_points():
    chart = Chart()
    for step in range(1, 10_001):
        chart.add(step, 1.0, 0.5, 0.5)
    made = chart.as_json()
    assert MOST // 2 <= len(made["steps"]) <= MOST
    assert {len(line) for line in made.values()} == {len(made["steps"])}
    assert made["steps"][-1] > 10_000 - chart.stride


def test_few_steps_are_all_there():
    chart = Chart()
    for step in range(1, 6):
        chart.add(step, float(step), None, None)
    made = chart.as_json()
    assert made["steps"] == [1, 2, 3, 4, 5]
    assert made["loss"] == [1, 2, 3, 4, 5]


def test_a_point_is_the_mean_of_its_steps():
    chart, random_loss = Chart(), random.Random(1)
    losses = [random_loss.random() for _ in range(2000)]
    for step, loss in enumerate(losses, 1):
        chart.add(step, loss, loss, 0)
    made = chart.as_json()
    assert chart.stride == 8
    for index in (0, 7, len(made["steps"]) - 1):
        end = made["steps"][index]
        assert made["loss"][index] == pytest.approx(sum(losses[end - 8 : end]) / 8, rel=1e-4)


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
