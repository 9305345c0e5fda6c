"""The size that a model was made for."""

from types import SimpleNamespace

import pytest
from sampling_models import tiny_model

from dreambooth.trainer.sampling.model_size import model_size


def loaded(family="sd1", prediction_type="epsilon", *, metadata, sample_size=None):
    model = tiny_model(family, prediction_type)
    model.source = SimpleNamespace(metadata=metadata)
    unet = {} if sample_size is None else {"sample_size": sample_size}
    model.configs = {"unet": unet}
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (loaded(metadata={"modelspec.resolution": "640x448"}, sample_size=96), (640, 448)),
        (loaded(metadata={"modelspec.resolution": "as you like"}, sample_size=96), (768, 768)),
        (loaded(metadata={}), (512, 512)),
        (loaded("sd2", metadata={}), (512, 512)),
        (loaded("sd2", "v_prediction", metadata={}), (768, 768)),
    ],
)
def test_the_size_is_what_metadata_config_or_family_say(model, expected):
    assert model_size(model) == expected
