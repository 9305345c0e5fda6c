from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.shared.catalog import catalog, concept_catalog, reference_table, schema
from dreambooth.shared.concepts import Concept
from dreambooth.shared.config import groups, setting_fields, settings_from, to_mapping
from dreambooth.shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = {entry.name: entry for entry in catalog()}


def row(name: str) -> str:
    [found] = [line for line in reference_table().splitlines() if line.startswith(f"| `{name}` |")]
    return found


def test_every_setting_is_in_the_catalog_once_in_the_pages_order() -> None:
    assert [entry.name for entry in catalog()] == list(setting_fields())
    assert {entry.name: entry.group for entry in catalog()} == {
        name: group for name, (group, _) in setting_fields().items()
    }


def test_an_entry_says_all_that_a_page_needs() -> None:
    steps = ENTRIES["checkpointing_steps"]
    assert (steps.kind, steps.default, steps.minimum, steps.maximum, steps.unit) == (
        "int",
        500,
        0,
        None,
        "steps",
    )
    assert steps.label == "Save the state every" and not steps.common
    assert ENTRIES["crop"].choices == ("center", "random")
    assert ENTRIES["model"].common
    kinds = {
        name: ENTRIES[name].kind
        for name in ("seed", "rotation", "use_ema", "vae", "optimizer_args", "concepts")
    }
    assert list(kinds.values()) == ["int", "float", "bool", "str", "dict", "concepts"]


def test_the_defaults_are_those_of_the_settings() -> None:
    assert {entry.name: entry.default for entry in catalog()} == to_mapping(Settings())
    assert settings_from({name: entry.default for name, entry in ENTRIES.items()}, where="page") == Settings()


def test_a_changed_default_changes_nothing_for_the_next_reader() -> None:
    [entry] = [entry for entry in catalog() if entry.name == "optimizer_args"]
    entry.default["a"] = "b"
    assert (
        Settings().training.optimizer_args == {} == {e.name: e for e in catalog()}["optimizer_args"].default
    )


def test_the_fields_of_a_concept_come_in_the_same_form() -> None:
    assert [entry.name for entry in concept_catalog()] == [item.name for item in dataclasses.fields(Concept)]
    kinds = {entry.name: entry.kind for entry in concept_catalog()}
    assert (kinds["instance_prompt"], kinds["num_class_images"], kinds["class_guidance_scale"]) == (
        "str",
        "int",
        "float",
    )


def test_the_schema_is_plain_json() -> None:
    there_and_back = json.loads(json.dumps(schema(), allow_nan=False))
    assert there_and_back == schema()
    assert [entry["name"] for entry in there_and_back] == list(setting_fields())


def test_the_table_has_every_group_and_every_setting_once() -> None:
    lines = reference_table().splitlines()
    assert [line.strip("*") for line in lines if line.startswith("**")] == list(groups())
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == list(setting_fields())
    for line in lines:
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 4, line
            assert "<" not in line, "GitHub takes it for a tag and shows nothing"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adam_epsilon", "| 1e-08 |"), ("train_unet", "| yes |"), ("overwrite", "| no |"), ("vae", "| – |"),
        ("optimizer_args", "| – |"), ("rotation", "| 0 |"), ("resolution", "From 0 to 2048 pixels."),
        ("seed", "From 0 to 9007199254740992."), ("train_batch_size", "From 1 to 256."),
        ("checkpoints_total_limit", "At least 1."), ("crop", "One of `center`, `random`."),
        ("ema_decay", "From 0 to 0.999999."),
        ("export_steps", "&lt;name>-&lt;step>"),
    ],
)  # fmt: skip
def test_a_row_says_default_range_and_choices(name: str, said: str) -> None:
    assert said in row(name)


def test_the_module_prints_the_table_as_utf8_wherever_it_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth.shared.catalog"], cwd=ROOT, capture_output=True, check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.decode("utf-8") == reference_table()
    assert done.stderr == b""


def test_a_setting_that_is_for_some_kinds_of_result_names_kinds_that_there_are() -> None:
    kinds = set(ENTRIES["output_kind"].choices)
    named = [set(entry.kinds) for entry in ENTRIES.values()]
    named += [set(kinds) for entry in ENTRIES.values() for kinds in entry.choice_kinds.values()]
    assert all(found <= kinds for found in named) and {"lora", "lycoris"} in named
    assert all(set(entry.choice_kinds) <= set(entry.choices) for entry in ENTRIES.values())
    assert all(ENTRIES[name].kinds == ("lora", "lycoris") for name in ("rank", "prior", "base_precision"))
