"""Embeddings: made and trained with the checkpoint in memory, which is taken for granted."""

from dataclasses import dataclass

from modules import devices, shared


@dataclass
class Embedding:
    step: int


def _model():
    model = shared.sd_model
    model.sd_checkpoint_info  # noqa: B018 -- an AttributeError where there is none, as in the WebUI
    devices.card.visits += 1
    return model


def create_embedding(name, num_vectors_per_token=1, overwrite_old=False, init_text="*"):
    _model()
    return f"{name}.pt"


def train_embedding(id_task, name, *args):
    _model()
    return Embedding(1), f"{name}.pt"


class EmbeddingDatabase:
    """Embeddings of the width of the checkpoint's, which says it."""

    def __init__(self):
        self.reads = 0

    def load_textual_inversion_embeddings(self, force_reload=False):
        _model()
        self.reads += 1
