"""All texts that the page can show, collected from where they are written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from dreambooth.host import fields, tab
from dreambooth.shared.presets import as_json

ROOT = Path(__file__).resolve().parents[2]
_STRING = r'"((?:[^"\\]|\\.)+)"'
_TABLES = re.compile(r"const (?:PHASES|STATES|TITLES|PARTS) = \{(.*?)\};", re.DOTALL)
_CALLS = (
    re.compile(rf"\bdb\.t\(\s*{_STRING}"),
    re.compile(rf"\b(?:title|help|ask|no): {_STRING}"),
    # both sides of a choice inside a call: db.t(n === 1 ? "…" : "…")
    re.compile(rf"\bdb\.t\([^\"()]*\? {_STRING}"),
)
_COUNTS = re.compile(rf"\bdb\.count\([^\"]*{_STRING}, {_STRING}[,)]")


def scripts() -> list[Path]:
    return sorted((ROOT / "javascript").glob("*.js"))


def of_script(source: str) -> set[str]:
    """The texts that a script passes through db.t, db.count or one of its tables of texts."""
    source = _without_comments(source)
    found = {text for call in _CALLS for text in call.findall(source)}
    found |= {text for pair in _COUNTS.findall(source) for text in pair}
    for table in _TABLES.findall(source):
        found |= set(re.findall(rf": {_STRING}", table))
    return {text.replace('\\"', '"') for text in found}


def unmarked(source: str) -> set[str]:
    """Strings that look like sentences or titles and pass through nothing that translates them."""
    strings = set(re.findall(_STRING, _without_comments(source)))
    sentences = {text for text in strings if re.match(r"[A-Z][a-z]+( [a-z]|[.…]|$)", text)}
    keys = {"Escape", "Home", "End", "Node", "Content", "GET", "POST", "ArrowRight", "ArrowLeft", "DETAILS"}
    return sentences - of_script(source) - keys


def _without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|(?<=\s)// .*?$", "", source, flags=re.DOTALL | re.MULTILINE)


def of_page() -> set[str]:
    """Everything of the page that is fixed: scripts, the settings' labels and helps, presets, the tab's first content."""
    found = {text for path in scripts() for text in of_script(path.read_text(encoding="utf-8"))}
    entries = [entry for group in fields.groups() for entry in group["fields"]] + fields.concept_fields()
    for entry in entries:
        found |= {entry["label"], entry["help"], entry["unit"], entry["other"]}
    found |= {group["title"] for group in fields.groups()}
    for preset in as_json():
        found |= {
            preset["title"],
            preset["help"],
            preset["help_with_prior"],
            preset["evidence"],
            *preset["grades"].values(),
        }
        found |= {variant["evidence"] for variant in preset["variants"]}
    found |= {tab.STARTING, tab.NO_SCRIPTS, *tab.SCRIPTS_FAILED, *tab.STATES.values()}
    return found - {""}


def said_in(path: Path) -> Iterator[str]:
    """The sentences of a Python file, each value that is filled in as {}: strings of several words that are neither
    docstrings nor parts of another one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed_over = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
    }
    passed_over -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    passed_over |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
