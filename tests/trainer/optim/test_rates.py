from __future__ import annotations

import pytest

from dreambooth.shared.config import settings_from
from dreambooth.trainer.optim.rates import with_rates

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


TEXT = "text_encoder_learning_rate"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": "1e-4"}, "learning_rate 0.0001 is 50 times the usual 2e-06 for a whole model"),
        ({"learning_rate": "1e-5"}, ""),
        ({"learning_rate": "4e-7"}, ""),
        ({"learning_rate": "1e-8"}, "learning_rate 1e-08 is 200 times smaller than the usual 2e-06"),
        ({**LORA, "learning_rate": "1e-3"}, ""),
        (
            {**LORA, "learning_rate": "2e-2"},
            "learning_rate 0.02 is 200 times the usual 0.0001 for an adapter",
        ),
        ({**LORA, "learning_rate": "2e-6"}, "learning_rate 2e-06 is 50 times smaller than the usual 0.0001"),
        ({"learning_rate": "1", "optimizer": "prodigy"}, ""),
        ({"learning_rate": "1", "optimizer": "torch.optim.SGD"}, ""),
        ({"learning_rate": "1", "train_unet": "no", TEXT: "1e-6"}, ""),
        ({TEXT: "1e-3"}, f"{TEXT} 0.001 is 500 times the usual 2e-06 for a whole model"),
        ({TEXT: "1e-3", "train_text_encoder": "no"}, ""),
        ({**LORA, TEXT: "5e-5"}, ""),
    ],
)
def test_a_rate_far_from_the_usual_for_what_is_trained_is_remarked_on(values, said) -> None:
    _, notes = with_rates(settings_from(values, where="test"))
    remarks = [note for note in notes if " times " in note]
    assert len(remarks) == bool(said) and (not said or remarks[0].startswith(said))


@pytest.mark.parametrize(("rate", "noted"), [("1e-4", False), ("1e-9", False), ("2.1e-4", True)])
def test_a_small_model_takes_higher_rates(rate, noted) -> None:
    _, notes = with_rates(settings_from({"learning_rate": rate}, where="test"), unet_parameters=10_000_000)
    assert any(" times " in note for note in notes) == noted
