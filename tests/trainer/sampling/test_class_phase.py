"""Class images are shared out among processes: each is made once, whoever is faster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dreambooth.shared.concepts import Concept
from dreambooth.shared.settings import Settings
from dreambooth.trainer.data.survey import ConceptImages, Survey
from dreambooth.trainer.processes import ALONE, Processes
from dreambooth.trainer.sampling import class_phase
from dreambooth.trainer.sampling.class_phase import ClassPhase
from dreambooth.trainer.stepdown import read_rungs


@pytest.fixture
def phases(tmp_path, monkeypatch):
    """The phase in each of two processes, with pictures that are nothing but files."""

    def draw(model, tokenizer, plan, *, on_image, should_stop):
        for index in sorted(plan.missing):
            path = plan.folder / f"class-{index:05d}-{'0' * 12}.png"
            assert not path.exists(), "it is made twice"
            path.write_bytes(b"")
            on_image(0, 0, path)
        return True

    monkeypatch.setattr(class_phase, "make_class_images", draw)
    settings = Settings()
    settings.images.resolution, settings.prior.sample_batch_size = 64, 1
    told: list[dict[str, object]] = []

    def phase(index: int) -> ClassPhase:
        return ClassPhase(
            settings,
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            tmp_path,
            lambda event, **fields: told.append({"process": index, **fields}),
            lambda: False,
            lambda: None,
            Processes(index, 2),
        )

    return phase(0), phase(1), told


def test_pictures_that_do_not_fit_one_by_one_are_decoded_in_tiles(phases, tmp_path, monkeypatch):
    phase, _, told = phases
    phase.processes = ALONE
    phase.settings.images.resolution = 1024
    draw = class_phase.make_class_images
    tiled: list[bool] = []
    vae = SimpleNamespace(enable_tiling=lambda *on: tiled.append(True), disable_tiling=lambda: None)

    def allocating(*arguments, **more):
        if not any(tiled):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return draw(*arguments, **more)

    monkeypatch.setattr(class_phase, "make_class_images", allocating)
    concept = Concept(instance_prompt="photo of sks cat", class_prompt="photo of cat")
    found = Survey((ConceptImages(1, concept, (), tmp_path, (), 2),), ())
    monkeypatch.setattr(class_phase, "survey_of", lambda settings, base: found)
    phase.make(SimpleNamespace(components={"vae": vae}), phase.share(found.class_folders()))
    assert read_rungs(tmp_path) == {"vae_tiling": "yes"}
    assert len(list(tmp_path.glob("class-*.png"))) == 2
    assert [news["memory"] for news in told if "memory" in news] == [{"vae_tiling": "yes"}]


def test_every_image_is_made_once_however_far_the_other_process_is(phases, tmp_path):
    first, second, told = phases
    concept = Concept(instance_prompt="photo of sks cat", class_prompt="photo of cat")
    folders = Survey((ConceptImages(1, concept, (), tmp_path, (), 5),), ()).class_folders()
    shares = [phase.share(folders) for phase in (first, second)]
    first.make(SimpleNamespace(), shares[0])  # all of them, before the second begins
    second.make(SimpleNamespace(), shares[1])
    assert sorted(path.name[6:11] for path in tmp_path.iterdir()) == [f"{index:05d}" for index in range(5)]
    assert [(news["process"], news["done"], news["of"]) for news in told] == [
        (0, 0, 3), (0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 0, 2), (1, 1, 2), (1, 2, 2),
    ]  # fmt: skip
