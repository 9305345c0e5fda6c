"""The real WebUI draws with what we made, for every family: with `<lora:name:1>` as with the merged checkpoint.

Runs where DREAMBOOTH_WEBUI names a folder with the WebUI installed. Bases of random weights are trained by our command
line (drawable.py); an extension of the test's own (witness.py) says what the WebUI made of each file.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from asking import txt2img
from servers import ROOT, Server, real_webui
from walking import SHOTS

pytestmark = [pytest.mark.slow, pytest.mark.webui]
KINDS = ("lora", "dora", "loha", "lokr")
FAMILIES = (
    "sd1",
    "sd1-inpaint",
    "sd2",
    "sd2-v",
    "sd2-inpaint",
    "sdxl",
    "sdxl-v",
)  # that adapters are trained on
PARAMETERIZATIONS = {"sd2-v": "v", "sdxl-v": "v", "sdxl-zsnr": "v"}
PROMPT = "photo of sks cat"
SIDE = 64
# The schedule, which the WebUI computes, and OpenCLIP's and CLIP's numbers that are no weights
NO_WEIGHTS = ("posterior_", "log_", "sqrt_", "betas", "alphas_", "denoiser.")
MARKS = {"sdxl-v": ["v_pred"], "sdxl-zsnr": ["v_pred", "ztsnr"]}


@pytest.fixture(scope="module")
def webui(tmp_path_factory, trainer) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pictures")
    command = [trainer, Path(__file__).with_name("drawable.py"), folder / "data", folder / "hub"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    environ = {"OMP_NUM_THREADS": "1", "HUGGINGFACE_HUB_CACHE": str(folder / "hub")}
    server = real_webui(Path(os.environ["DREAMBOOTH_WEBUI"]), folder / "data", environ=environ)
    yield server.start(patience=600)
    server.stop()


def draw(webui: Server, checkpoint: str, more: str = "", **options: object) -> numpy.ndarray:
    """The WebUI's picture, (height, width, 3) from 0 to 255."""
    # a preview of SDXL's would be a download
    chosen = {"sd_model_checkpoint": f"{checkpoint}.safetensors", "live_previews_enable": False, **options}
    asked = {"prompt": PROMPT + more, "steps": 8, "width": SIDE, "height": SIDE, "cfg_scale": 3, "seed": 5}
    picture, said = txt2img(webui.url, **asked, sampler_name="Euler", override_settings=chosen)
    assert said["sd_model_name"] == checkpoint
    if SHOTS:
        picture.save(Path(SHOTS) / f"{checkpoint}{more.replace(':', ' ')}.png")
    return numpy.asarray(picture.convert("RGB"), dtype=numpy.float64)


def apart(one: numpy.ndarray, other: numpy.ndarray) -> float:
    """The mean difference of two pictures' pixels, of 255."""
    return float(numpy.abs(one - other).mean())


def check_loaded(webui: Server, family: str, checkpoint: str) -> None:
    """Every tensor of the file is in the WebUI's model, with its value, and every weight of the model is from the file."""
    said = json.loads((webui.data / "witness" / f"{checkpoint}.json").read_text(encoding="utf-8"))
    assert [name for name in said["missing"] if not name.startswith(NO_WEIGHTS)] == []
    assert said["left"] == MARKS.get(family, [])
    assert said["other"] == []
    assert said["tensors"] > 700
    assert said["parameterization"] == PARAMETERIZATIONS.get(family, "eps")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_draws_what_the_merged_checkpoint_draws(webui, family) -> None:
    base = draw(webui, family)
    check_loaded(webui, family, family)
    assert base.std() > 20, "the base draws something"
    drawn = {kind: draw(webui, family, f" <lora:{family}-{kind}:1>") for kind in KINDS}
    assert apart(draw(webui, family), base) == 0, "what a LoRA changed is undone"
    found = {}
    for kind in KINDS:
        merged = draw(webui, f"{family}-{kind}-merged")
        check_loaded(webui, family, f"{family}-{kind}-merged")
        found[kind] = (apart(drawn[kind], base), apart(drawn[kind], merged))
    print(f"{family}: {found}")
    assert all(changed > 3 and other <= 1 for changed, other in found.values()), found


@pytest.mark.parametrize("family", [*FAMILIES, "sdxl-zsnr"])
def test_a_model_that_was_trained_as_a_whole_is_loaded_with_every_tensor_and_draws(webui, family) -> None:
    schedule = {"sd_noise_schedule": "Zero Terminal SNR"} if family == "sdxl-zsnr" else {}
    base, whole = draw(webui, family, **schedule), draw(webui, f"{family}-whole", **schedule)
    check_loaded(webui, family, f"{family}-whole")
    assert whole.std() > 20 and apart(base, whole) > 3
