"""Checkpoints in and out: loading, exporting a trained one, and `convert`."""

from __future__ import annotations

from dreambooth.trainer.export_file import export_single_file
from dreambooth.trainer.loading import LoadedModel, canonical_state, load_model

__all__ = ["LoadedModel", "canonical_state", "export_single_file", "load_model"]
