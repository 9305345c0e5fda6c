"""While a training has the card, nothing of the WebUI's comes onto it, and who asks is told why."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from conftest import picture

from dreambooth.shared.errors import DreamboothError


def facade() -> Any:
    return importlib.import_module("dreambooth.host.webui")


def guard(reason: Any) -> None:
    importlib.import_module("dreambooth.host.guarding").guard(reason)


@pytest.fixture
def guarded(loaded):
    """The stand-in with our guard, its page made; `why` is its reason."""
    webui = loaded()
    why: list[str] = [""]
    webui.shared.opts.onchange(
        "sd_model_checkpoint",
        webui.call_queue.wrap_queued_call(lambda: webui.sd_models.reload_model_weights()),
        call=False,
    )
    webui.shared.opts.onchange("sd_vae", lambda: webui.sd_vae.reload_vae_weights(), call=False)
    guard(lambda: why[0])
    webui.script_callbacks.run("before_ui")
    return webui, why


def generate(webui: Any) -> tuple:
    """What a press of Generate gives."""
    return webui.call_queue.wrap_gradio_gpu_call(webui.txt2img.txt2img)("task(x)", "a cat", "")


def test_generate_shows_the_reason_in_place_of_pictures(guarded):
    webui, why = guarded
    why[0] = "Training <my dog>: step 3 of 100."
    images, details, info, _ = generate(webui)
    assert images == [] and details == "{}"
    assert "Training &lt;my dog&gt;: step 3 of 100." in info
    assert webui.errors.reported == []
    why[0] = ""
    assert len(generate(webui)[0]) == 1


def test_all_buttons_say_so(guarded):
    webui, why = guarded
    why[0] = "busy"
    for function in (webui.txt2img.txt2img, webui.txt2img.txt2img_upscale, webui.img2img.img2img):
        assert "busy" in function("task(x)", "a cat", "")[2]


def test_what_generates_by_other_ways_is_answered_503_and_loads_nothing(guarded):
    from fastapi import HTTPException

    webui, why = guarded
    facade().free_model()
    why[0] = "busy"
    with pytest.raises(HTTPException) as refused:
        picture(webui)
    assert (refused.value.status_code, refused.value.detail) == (503, "busy")
    assert webui.devices.card.used_gb == 0
    why[0] = ""
    assert "Model: a" in picture(webui)


def test_a_webui_that_starts_while_a_training_runs_leaves_the_card_alone(standin):
    webui = standin("--standin-card", "8")
    webui.checkpoint("a")
    webui.sd_models.list_models()
    why = ["busy"]
    guard(lambda: why[0])
    assert webui.shared.sd_model is None and webui.devices.card.used_gb == 0
    why[0] = ""
    assert webui.shared.sd_model is None, "whoever looks loads none beside one that is being chosen"
    assert "Model: a" in picture(webui)


def test_why_a_checkpoint_could_not_be_loaded_is_remembered(guarded):
    webui, why = guarded
    broken = webui.checkpoint("broken")
    broken.write_bytes(broken.read_bytes()[:-1])
    webui.sd_models.list_models()
    before, _ = facade().failed_loads()
    assert not webui.shared.opts.set("sd_model_checkpoint", "broken.safetensors")
    assert facade().failed_loads() == (
        before + 1, "Error while deserializing header: MetadataIncompleteBuffer"
    )  # fmt: skip
    why[0] = "busy"
    webui.shared.opts.set("sd_model_checkpoint", "b.safetensors")
    assert facade().failed_loads()[0] == before + 1, "held back is not failed"


def test_a_model_that_is_being_loaded_at_the_start_is_waited_for(loaded):
    webui = loaded()
    facade().await_first_load(patience=0)
    with webui.sd_models.model_data.lock, pytest.raises(DreamboothError, match="still loading"):
        facade().await_first_load(patience=0)


def test_a_checkpoint_chosen_while_the_card_is_busy_is_loaded_later(guarded):
    webui, why = guarded
    facade().free_model()
    why[0] = "busy"
    assert webui.shared.opts.set("sd_model_checkpoint", "b.safetensors")
    assert webui.devices.card.used_gb == 0
    with pytest.raises(DreamboothError, match="busy"):
        facade().load_checkpoint(webui.data / "models" / "Stable-diffusion" / "a.safetensors")
    why[0] = ""
    assert "Model: b" in picture(webui)


def test_a_vae_can_be_chosen_while_no_model_is_loaded(guarded):
    webui, _ = guarded
    facade().free_model()
    assert webui.shared.opts.set("sd_vae", "None")
    assert webui.errors.reported == []
    assert "Model: a" in picture(webui)


def test_reload_ui_does_not_pile_guards_up(guarded):
    webui, why = guarded
    before = webui.txt2img.txt2img.__wrapped__
    for _ in range(3):
        webui.script_callbacks.clear_callbacks()
        guard(lambda: why[0])
        webui.script_callbacks.run("before_ui")
    assert webui.txt2img.txt2img.__wrapped__ is before
    assert not hasattr(webui.sd_models.reload_model_weights.__wrapped__, "__wrapped__")
    assert not hasattr(type(webui.sd_models.model_data).get_sd_model.__wrapped__, "__wrapped__")


# what else would load a model

MODELS_OF_THEIR_OWN = {
    "the page's Extras": lambda webui: webui.postprocessing.run_postprocessing_webui("task(x)", "picture"),
    "the API's Extras": lambda webui: webui.postprocessing.run_extras("picture"),
    "Interrogate CLIP": lambda webui: webui.shared.interrogator.interrogate("picture"),
    "Interrogate DeepBooru": lambda webui: webui.deepbooru.model.tag("picture"),
}
CHECKPOINTS = {
    "Create embedding": lambda webui: module(webui, "textual_inversion.textual_inversion").create_embedding(
        "x"
    ),
    "Train Embedding": lambda webui: module(webui, "textual_inversion.ui").train_embedding("task(x)", "x"),
    "the API's train/embedding": lambda webui: module(
        webui, "textual_inversion.textual_inversion"
    ).train_embedding("", "x"),
    "Train Hypernetwork": lambda webui: module(webui, "hypernetworks.ui").train_hypernetwork("task(x)", "x"),
    "the API's train/hypernetwork": lambda webui: module(
        webui, "hypernetworks.hypernetwork"
    ).train_hypernetwork("", "x"),
    "Load the checkpoint": lambda webui: webui.sd_models.send_model_to_device(webui.shared.sd_model),
}
each_of = lambda actions: pytest.mark.parametrize("act", actions.values(), ids=list(actions))  # noqa: E731


def module(webui: Any, name: str) -> Any:
    return importlib.import_module(f"modules.{name}")


def told(act: Any, webui: Any) -> str:
    """What somebody is told who does this: what is shown, or the error's text."""
    from fastapi import HTTPException

    try:
        return str(act(webui))
    except HTTPException as error:
        assert error.status_code == 503
        return str(error.detail)


@each_of(MODELS_OF_THEIR_OWN | CHECKPOINTS)
def test_nothing_loads_a_model_while_the_card_is_busy_and_all_works_afterwards(guarded, act):
    webui, why = guarded
    facade().free_model()
    why[0] = "Training my dog"
    assert "Training my dog" in told(act, webui)
    assert (webui.devices.card.used_gb, webui.devices.card.visits) == (0, 0)
    why[0] = ""
    assert "Training" not in told(act, webui).replace("Training finished", "")
    assert webui.devices.card.visits == 1 or webui.devices.card.used_gb == 2.0


@each_of(CHECKPOINTS)
def test_what_needs_the_checkpoint_has_it_back_once_the_training_is_done(guarded, act):
    webui, _ = guarded
    facade().free_model()
    assert webui.sd_models.model_data.sd_model is None
    act(webui)
    assert webui.shared.sd_model.sd_checkpoint_info.name == "a.safetensors"


def test_a_training_of_the_webuis_own_waits_also_where_its_model_may_stay_on_the_card(guarded):
    webui, why = guarded
    facade().free_model(unload=False)
    why[0] = "busy"
    shown = webui.call_queue.wrap_gradio_gpu_call(module(webui, "textual_inversion.ui").train_embedding)(
        "task(x)", "x"
    )
    assert len(shown) == 2 and "busy" in shown[1]
    assert webui.devices.card.visits == 0 and webui.errors.reported == []


def test_unloading_a_checkpoint_that_has_left_already_is_no_error(guarded):
    webui, _ = guarded
    facade().free_model()
    webui.sd_models.unload_model_weights()
    assert webui.sd_models.model_data.sd_model is None


def test_a_refresh_of_the_cards_of_loras_needs_no_checkpoint(guarded):
    webui, _ = guarded
    embeddings = module(webui, "textual_inversion.textual_inversion").EmbeddingDatabase()
    embeddings.load_textual_inversion_embeddings(force_reload=True)
    facade().free_model()
    embeddings.load_textual_inversion_embeddings(force_reload=True)
    assert embeddings.reads == 1


def test_the_page_shows_a_refusals_text_as_a_message(guarded):
    import gradio

    webui, why = guarded
    why[0] = "Training <my dog>"
    with pytest.raises(gradio.Error) as refused:
        webui.shared.interrogator.interrogate("picture")
    assert str(refused.value) == refused.value.message == "Training <my dog>"


def test_a_webui_that_lacks_a_part_is_guarded_in_all_others(loaded, monkeypatch):
    webui = loaded()
    monkeypatch.setitem(importlib.import_module("sys").modules, "modules.deepbooru", None)
    monkeypatch.delattr(webui.postprocessing, "run_extras")
    guard(lambda: "busy")
    webui.script_callbacks.run("before_ui")
    assert "busy" in told(MODELS_OF_THEIR_OWN["Interrogate CLIP"], webui)
    assert "busy" in told(MODELS_OF_THEIR_OWN["the page's Extras"], webui)
