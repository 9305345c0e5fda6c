"""What the trainer refuses a form or ends a run with is known to the page's languages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import translations

PACKAGE = Path(__file__).resolve().parents[1] / "dreambooth"
# what a form or a run in the page can meet; the command line's own words (convert, generate, export) stay English
PLACES = (
    *(
        "shared/config.py",
        "shared/concepts.py",
        "shared/paths.py",
        "shared/runfolder.py",
        "shared/settings_file.py",
        "shared/text_files.py",
    ),
    *(
        "trainer/data/survey.py",
        "trainer/data/buckets.py",
        "trainer/data/images.py",
        "trainer/planning/plan_settings.py",
        "trainer/saving/outputs.py",
    ),
    *(
        "trainer/optim/optimizer_rules.py",
        "trainer/optim/optimizer_class.py",
        "trainer/optim/optimizers.py",
        "trainer/machine.py",
        "trainer/models/attention.py",
    ),
    *(
        "trainer/data/cache.py",
        "trainer/data/store.py",
        "trainer/saving/results.py",
        "trainer/run.py",
        "trainer/models/sources.py",
    ),
    *("trainer/stepdown.py", "trainer/sampling/class_phase.py", "trainer/data/encoding.py"),
    *(
        "trainer/models/loading.py",
        "trainer/sampling/sample.py",
        "trainer/sampling/samplers.py",
        "trainer/saving/checkpoint.py",
        "trainer/models/export_file.py",
    ),
    *(
        "trainer/models/tokenizer.py",
        "trainer/adapters",
        "trainer/weights",
        "trainer/families",
        "trainer/eightbit",
    ),
)
# put together from parts as the program runs; what becomes of them is translated, and held by test_cli.py
PARTS = {
    *(
        "7 is not 7",
        "7 is not 7 of at least 7",
        "Write 7, or leave 7 out.",
        "Write 7 of at least 7, or leave 7 out.",
    ),
    *(
        "7 7needs 7, and this run uses 7",
        "7It takes 7",
        "Take 77.",
        "7 another optimizer: 7",
        "write 7: {name: value}",
    ),
    *("there is no saved state7", "use 0, and optimizer_args: {warmup_steps: 7}"),
}
ERRORS = {"InputError", "DreamboothError", "RunFailed", "BadImage"}


def told_in(path: Path) -> Iterator[str]:
    """What the errors that a file raises say, and what they say to do; a value that is filled in is 7."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            remedies = [keyword.value for keyword in node.keywords if keyword.arg == "remedy"]
            yield from filter(None, map(_text, [*node.args[:1], *remedies]))


def _text(node: ast.expr) -> str:
    """Empty for what is only known as the program runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "7" for part in node.values)
    return ""


@pytest.mark.parametrize("place", PLACES)
def test_what_a_form_or_a_run_is_told_is_translated(place: str) -> None:
    known = translations.table()
    files = [PACKAGE / place] if place.endswith(".py") else sorted((PACKAGE / place).rglob("*.py"))
    assert files
    told = {text for path in files for text in told_in(path)} - PARTS
    missing = [line for text in sorted(told) for line in translations.untranslated(text, known)]
    assert [line for line in missing if any(map(str.isalpha, line))] == []
