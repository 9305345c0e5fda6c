"""The plan: everything up to the first write. What would happen, what it needs, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth import __version__
from dreambooth.shared.errors import InputError, concerning
from dreambooth.shared.paths import check_writable, default_runs_dir
from dreambooth.shared.settings import Settings
from dreambooth.trainer import machine as machines
from dreambooth.trainer.adapters.plan import AdapterPlan, adapter_plan, with_resolved
from dreambooth.trainer.adapters.results import check_prior, from_base
from dreambooth.trainer.advice import Surroundings, concept_facts
from dreambooth.trainer.buckets import Size, bucket_sizes
from dreambooth.trainer.captions import Variation
from dreambooth.trainer.convert import LoadedModel, load_model
from dreambooth.trainer.dataset import Augmentation, DataPlan, plan_data
from dreambooth.trainer.eightbit import Verdict
from dreambooth.trainer.eightbit.instead import check_8bit
from dreambooth.trainer.expected import Expected, expect, likeness
from dreambooth.trainer.export_file import yaml_beside
from dreambooth.trainer.images import parse_colour
from dreambooth.trainer.looks import look_at
from dreambooth.trainer.machine import Machine
from dreambooth.trainer.model_size import model_size
from dreambooth.trainer.plan_notes import notes_on_model
from dreambooth.trainer.plan_text import plan_text
