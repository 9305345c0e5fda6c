"""Extras: an upscaler's own model on the card, for the page and for the API."""

import html

from modules import devices, shared


def run_postprocessing(image, *args):
    devices.card.used_gb += 0.5
    devices.card.used_gb -= 0.5
    devices.card.visits += 1
    shared.state.end()
    return [image], html.escape("upscaled"), ""


def run_postprocessing_webui(id_task, *args):
    return run_postprocessing(*args)


def run_extras(image, *args):
    return run_postprocessing(image, *args)
