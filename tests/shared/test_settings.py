from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dreambooth.shared import settings as module
from dreambooth.shared.config import check_value, groups, setting_fields
from dreambooth.shared.definition import setting
from dreambooth.shared.settings import GROUPS, Settings

FIELDS = [pytest.param(item, id=name) for name, (_, item) in setting_fields().items() if name != "concepts"]


def test_a_name_stands_in_one_group_only() -> None:
    names = [item.name for cls in groups().values() for item in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    assert len(names) > 60


def test_every_group_of_settings_is_in_the_pages_order() -> None:
    hints = get_type_hints(Settings)
    assert list(GROUPS) == [name for name in hints if dataclasses.is_dataclass(hints[name])]
    assert all(cls.__doc__ for cls in groups().values())


@pytest.mark.parametrize("item", FIELDS)
def test_a_setting_has_a_help_in_whole_sentences_and_a_default_that_passes_its_own_check(item: Any) -> None:
    assert item.metadata["help"].endswith(".")
    assert len(item.metadata["help"]) < 160
    default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
    check_value(item, default, "test")
    hints = {name: hint for cls in groups().values() for name, hint in get_type_hints(cls).items()}
    expected = hints[item.name]
    assert type(default) is getattr(expected, "__origin__", expected)


@pytest.mark.parametrize("item", FIELDS)
def test_a_number_has_a_lower_limit_and_a_limit_is_only_on_numbers(item: Any) -> None:
    is_number = item.type.split(" ")[0] in ("int", "float")
    assert (item.metadata["minimum"] is not None) == is_number
    if item.metadata["maximum"] is not None:
        assert is_number and item.metadata["maximum"] > item.metadata["minimum"]


def test_settings_do_not_share_what_can_be_changed() -> None:
    first, second = Settings(), Settings()
    first.training.optimizer_args["a"] = "b"
    first.concepts.concepts.append("c")
    first.model.model = "m"
    assert second == Settings()
    assert second.training.optimizer_args == {} and second.concepts.concepts == []


def test_a_setting_keeps_what_is_known_of_it() -> None:
    @dataclasses.dataclass
    class Some:
        size: int = setting(5, "Size.", minimum=1, maximum=9, unit="cm", label="How big", common=True)

    [item] = dataclasses.fields(Some)
    assert Some().size == 5
    assert item.metadata == {
        "help": "Size.", "label": "How big", "choices": (), "minimum": 1, "maximum": 9, "unit": "cm", "common": True,
        "other": ("", ""), "kinds": (), "choice_kinds": {}, "listed": False,
    }  # fmt: skip


def test_no_setting_is_mentioned_in_a_help_that_does_not_exist() -> None:
    items = [item for _, item in setting_fields().values()]
    known = {
        "concepts_list",
        *setting_fields(),
        *(choice for item in items for choice in item.metadata["choices"]),
    }
    for item in items:
        for word in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", item.metadata["help"]):
            assert word in known, f"{item.name} speaks of {word}"


def test_shared_code_imports_nothing_but_the_standard_library_and_omegaconf() -> None:
    allowed = set(sys.stdlib_module_names) | {
        "dreambooth",
        "omegaconf",
        "yaml",
    }  # yaml is omegaconf's
    for path in Path(module.__file__).parent.glob("*.py"):
        imported = re.findall(
            r"^\s*(?:from|import) ([a-z_]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert set(imported) <= allowed, path.name
