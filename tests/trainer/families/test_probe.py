import torch

from dreambooth.trainer.families.probe import probe


class Model(torch.nn.Module):
    """Gives back its input times `factor`, and remembers how it was asked."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, latents, timestep, encoder_hidden_states, return_dict):
        self.asked = latents, timestep, encoder_hidden_states
        return (latents * self.factor,)


def test_a_unet_that_returns_the_noise_predicts_epsilon():
    model = Model(1.05)
    assert probe(model, 1024) == "epsilon"
    latents, timestep, context = model.asked
    assert latents.shape == (1, 4, 8, 8) and bool((latents == 0.5).all())
    assert timestep.tolist() == [999] and context.shape == (1, 2, 1024) and bool((context == 0.5).all())


def test_a_unet_that_lies_far_below_its_input_predicts_v():
    assert probe(Model(-3.0), 64) == "v_prediction"
