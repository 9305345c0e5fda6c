"""What README and CHANGELOG say is what the code does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from dreambooth import __version__, cli
from dreambooth.shared.catalog import concept_catalog, reference_table
from dreambooth.trainer.optim.optimizer_table import reference_table as optimizers

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _commands() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    return dict(next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices)


def test_the_readmes_table_of_settings_is_the_one_that_the_definitions_make():
    begin, end = README.index("<!-- settings"), README.index("<!-- end of settings")
    assert README[begin:end].split("-->", 1)[1].strip() == reference_table().strip()


def test_the_readmes_table_of_optimizers_is_the_one_that_the_rows_make():
    begin, end = README.index("<!-- optimizers"), README.index("<!-- end of optimizers")
    assert README[begin:end].split("-->", 1)[1].strip() == optimizers().strip()


def test_every_command_and_every_flag_of_it_stands_in_the_readme():
    table = README[README.index("## Commands") : README.index("## Settings")]
    for name, parser in _commands().items():
        row = re.search(rf"^\| `{name}[ `].*$", table, re.MULTILINE)
        assert row, f"{name} has no row in the README's table of commands"
        flags = [
            flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")
        ]
        assert [flag for flag in flags if flag != "--help" and flag not in row[0]] == []


def test_every_command_that_the_readme_names_exists():
    named = set(re.findall(r"python3 -m dreambooth (\w+)", README))
    assert named and named <= set(_commands())


def test_every_field_of_a_concept_stands_in_the_readme():
    table = README[README.index("One concept:") : README.index("## A run's folder")]
    assert all(f"`{entry.name}`" in table for entry in concept_catalog())


TRAINER = ("", "planning", "memory", "data", "models", "optim", "sampling", "saving")


@pytest.mark.parametrize("part", ["", "shared", "host", *(f"trainer/{part}" for part in TRAINER)])
def test_every_module_stands_in_the_readmes_tree(part: str):
    tree = README[README.index("## Architecture") : README.index("## Licence")]
    folder = ROOT / "dreambooth" / part
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    # helpers of a module that is named stand behind it
    behind = {"sources.py", "pictures.py", "inpainting.py", "noise.py"}
    assert sorted(name for name in modules if name not in tree and name not in behind) == []


def _routes() -> set[str]:
    """`GET /page` and its like, as the source of the routes says; what they are made with is not installed here."""
    sources = (ROOT / "dreambooth" / "host").glob("*routes.py")
    found = (
        re.findall(r"@router\.(get|post|delete)\(\s*\"([^\"]+)\"", path.read_text("utf-8"))
        for path in sources
    )
    return {f"{method.upper()} {route}" for routes in found for method, route in routes}


def test_every_rest_route_stands_in_the_readme_and_no_other():
    table = README[README.index("## REST") : README.index("## The environment")]
    assert set(re.findall(r"`((?:GET|POST|DELETE) [^`]+)`", table)) == _routes() != set()


def test_every_module_of_the_host_stands_in_the_readmes_tree():
    tree = README[README.index("## Architecture") : README.index("## Licence")]
    modules = [
        path.name for path in (ROOT / "dreambooth" / "host").glob("*.py") if path.name != "__init__.py"
    ]
    assert sorted(name for name in modules if name not in tree) == []


def test_every_file_that_the_readme_shows_is_there():
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_changelog_begins_with_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## ([\d.]+)", changelog, re.MULTILINE)[1] == __version__
