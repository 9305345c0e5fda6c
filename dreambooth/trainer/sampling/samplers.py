"""The samplers that pictures can be made with, as data, each with the WebUI's name for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreambooth.shared.errors import InputError


@dataclass(frozen=True)
class Sampler:
    """A sampler's title in the WebUI, and the diffusers scheduler (module, class, options) that does it."""

    title: str
    module: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws_noise: bool = False


_MULTISTEP = ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler")
SAMPLERS: Mapping[str, Sampler] = {
    # Lu et al. 2022, arXiv 2211.01095, algorithm 2
    "dpmpp_2m": Sampler("DPM++ 2M", *_MULTISTEP),
    # with the noise levels of Karras et al. 2022, arXiv 2206.00364, equation 5
    "dpmpp_2m_karras": Sampler("DPM++ 2M, Schedule type: Karras", *_MULTISTEP, {"use_karras_sigmas": True}),
    # Zhao et al. 2023, arXiv 2302.04867
    "unipc": Sampler("UniPC", "scheduling_unipc_multistep", "UniPCMultistepScheduler"),
    "euler": Sampler("Euler", "scheduling_euler_discrete", "EulerDiscreteScheduler"),
    "euler_a": Sampler(
        "Euler a",
        "scheduling_euler_ancestral_discrete",
        "EulerAncestralDiscreteScheduler",
        draws_noise=True,
    ),
    # Song et al. 2020, arXiv 2010.02502, with eta 0
    "ddim": Sampler(
        "DDIM",
        "scheduling_ddim",
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    # Ho et al. 2020, arXiv 2006.11239
    "ddpm": Sampler(
        "DDPM",
        "scheduling_ddpm",
        "DDPMScheduler",
        {"clip_sample": False, "steps_offset": 1},
        draws_noise=True,
    ),
}
# The noise schedule that Stable Diffusion was trained with.
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
# Lin et al. 2023, arXiv 2305.08891: with zero terminal SNR the first step must be the very last timestep.
_ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def check_sampler(sampler: str, where: str = "sampler") -> None:
    """Raise `InputError` for a name that is not in `SAMPLERS`."""
    if sampler not in SAMPLERS:
        raise InputError(
            f"there is no sampler {sampler!r}", where=where, remedy=f"use one of: {', '.join(SAMPLERS)}"
        )


def make_scheduler(
    sampler: str, steps: int, *, prediction_type: str = "epsilon", zero_terminal_snr: bool = False
) -> Any:
    """The diffusers scheduler for `sampler`, its timesteps set and kept on the CPU (a GPU never waits for them).

    Raises `InputError` for a name that is not in `SAMPLERS`.
    """
    check_sampler(sampler)
    row = SAMPLERS[sampler]
    kind = getattr(importlib.import_module(f"diffusers.schedulers.{row.module}"), row.name)
    options = {**_SCHEDULE, **row.options, **(_ZERO_TERMINAL_SNR if zero_terminal_snr else {})}
    scheduler = kind(**options, prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    return scheduler
