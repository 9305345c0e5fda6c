"""Hypernetworks: trained with the checkpoint in memory, which is taken for granted."""

from modules.textual_inversion.textual_inversion import Embedding as Hypernetwork
from modules.textual_inversion.textual_inversion import _model


def train_hypernetwork(id_task, name, *args):
    _model()
    return Hypernetwork(1), f"{name}.pt"
