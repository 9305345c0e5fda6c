from __future__ import annotations

import pytest

from dreambooth.shared.config import settings_from
from dreambooth.trainer.rates import with_rates

LORA = {"output_kind": "lora"}


@pytest.mark.parametrize(
    ("values", "unet", "text"),
    [
        ({}, 2e-6, 2e-6),
        (LORA, 1e-4, 5e-5),
        ({"learning_rate": "1e-5"}, 1e-5, 1e-5),
        ({**LORA, "learning_rate": "2e-4"}, 2e-4, 1e-4),
        ({**LORA, "text_encoder_learning_rate": "3e-5"}, 1e-4, 3e-5),
        ({"optimizer": "prodigy"}, 1, 1),
        ({**LORA, "optimizer": "prodigy"}, 1, 1),
        ({"output_kind": "lycoris"}, 1e-4, 5e-5),
    ],
)
def test_a_rate_that_nobody_named_is_the_usual_one_for_what_is_trained(values, unet, text) -> None:
    found, notes = with_rates(settings_from(values, where="test"))
    training = found.training
    assert (training.learning_rate, training.text_encoder_learning_rate) == (unet, pytest.approx(text))
    assert any("learning_rate" in note for note in notes) == ("learning_rate" not in values or unet != text)
    assert with_rates(found) == (found, []), "what a resumed run reads is not changed again"


def test_a_component_that_is_not_trained_is_not_spoken_of() -> None:
    _, notes = with_rates(settings_from({**LORA, "train_text_encoder": "no"}, where="test"))
    assert notes == ["learning_rate 0.0001, the usual for an adapter"]


@pytest.mark.parametrize(
    ("values", "noted"),
    [
        ({"learning_rate": "1"}, True),
        ({"learning_rate": "2.1e-4"}, True),
        ({"learning_rate": "1e-4"}, False),
        ({**LORA, "learning_rate": "5e-3"}, False),
        ({**LORA, "learning_rate": "2e-2"}, True),
        ({"learning_rate": "1", "optimizer": "prodigy"}, False),
        ({"learning_rate": "1", "optimizer": "torch.optim.SGD"}, False),
        ({"learning_rate": "1", "train_unet": "no"}, False),
    ],
)
def test_a_rate_that_ruins_a_model_is_said(values, noted) -> None:
    _, notes = with_rates(settings_from(values, where="test"))
    assert any("times the usual" in note for note in notes) == noted
