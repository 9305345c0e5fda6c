"""Telling what an SD2 UNet predicts by running it, as the WebUI does.

Its files for epsilon and for v have the same names and shapes. At the last timestep the latents are nearly pure
noise: a UNet that predicts the noise returns about its input, one that predicts v returns something else.
"""

from __future__ import annotations

import torch

from dreambooth.trainer.families import PredictionType

LAST_TIMESTEP = 999
INPUT = 0.5
THRESHOLD = -1.0


@torch.no_grad()
def probe(unet: torch.nn.Module, context_width: int) -> PredictionType:
    """The prediction type of a UNet (on the CPU, float32), by the WebUI's test.

    A constant input of 0.5, (1, 4, 8, 8) with a context of (1, 2, width), at timestep 999: an epsilon model's
    output is about the input, that of a v model lies more than 1 below it on average.
    """
    latents = torch.full((1, 4, 8, 8), INPUT)
    context = torch.full((1, 2, context_width), INPUT)
    timestep = torch.tensor([LAST_TIMESTEP])
    output = unet(latents, timestep, encoder_hidden_states=context, return_dict=False)[0]
    return "v_prediction" if float((output - latents).mean()) < THRESHOLD else "epsilon"
