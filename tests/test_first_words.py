"""What a sentence begins with: the page gives it a capital letter, which must not fall on a file, a module or a setting.

The page cannot tell "foo is not installed" from "this is not a folder". So no text begins with a name as it is: it stands
in quotes (`'my cat.safetensors' is there`), or after what it is a name of (`the package foo is not installed`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from test_translations import ERRORS, PACKAGE

# values that a text may begin with as they are
HARMLESS = {
    # numbers and sizes
    *("free", "skipped", "here", "seed", "steps", "guidance_scale", "clip_skip", "resolution", "side"),
    "size_text(needed)",
    # names that have a capital letter anyhow, or dots in them
    *("kind.title", "title", "KINDS[asked.adapter].title", "device_title(device)", "type(error).__name__"),
    *("kind.target", "binding.original"),
    # whole paths: no capital is put on a word before a slash or a dot
    *("told", "folder", "note", "out", "path", "taken[0]", "outputs.final", "to_be_made", "error.where"),
    # commands, which begin with the path of a Python
    *("install_command(kind.library)", "pip_install('--no-deps', module)"),
    # words that are the beginning of a sentence themselves
    *("why", "what", "where", "doing", "text", "remedy", "hint", "cause.remedy", "_expected(item)"),
    "remedy + '; or choose' if remedy else 'choose'",
}  # fmt: skip


def told() -> Iterator[tuple[Path, ast.expr]]:
    """What each error of the package says, and says to do, as it is written there."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                remedies = [keyword.value for keyword in node.keywords if keyword.arg == "remedy"]
                yield from ((path, part) for part in [*node.args[:1], *remedies])


def test_no_text_begins_with_a_name_as_it_is() -> None:
    begins = {}
    for path, text in told():
        value = text.values[0] if isinstance(text, ast.JoinedStr) else None
        if isinstance(value, ast.FormattedValue) and value.conversion != ord("r"):
            begins[ast.unparse(value.value)] = path.name
    found = {value: name for value, name in begins.items() if not value.startswith("quoted(")}
    assert {value: name for value, name in found.items() if value not in HARMLESS} == {}


def test_every_text_says_what_it_is_about() -> None:
    """`is empty` would be a question, or an order, where a page shows it without its place."""
    verb = re.compile(r"(?:is|are|has|have|cannot|does|was|were|must|may|holds|lies|leads) (?!.*\?$)")
    texts = [(path.name, text.value) for path, text in told() if isinstance(text, ast.Constant)]
    texts += [
        (path.name, text.values[0].value)
        for path, text in told()
        if isinstance(text, ast.JoinedStr) and isinstance(text.values[0], ast.Constant)
    ]
    assert len(texts) > 300
    assert [(name, text) for name, text in texts if verb.match(str(text))] == []
