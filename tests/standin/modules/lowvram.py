"""`--medvram` and `--lowvram` keep a model's parts off the card until they are needed."""

from modules import devices
from modules.shared_cmd_options import cmd_opts

_on_card = []


def is_needed(_model):
    return bool(cmd_opts.lowvram or cmd_opts.medvram)


def apply(model):
    model.lowvram = is_needed(model)


def note_on_card(model):
    _on_card[:] = [model]


def send_everything_to_cpu():
    for model in _on_card:
        if model.device != devices.meta:
            model.to(device=devices.cpu)
    _on_card.clear()
