from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest

from dreambooth.host import tab


@dataclass
class State:
    state: str
    text: str = ""
    remedy: str = ""


class Texts(HTMLParser):
    """The texts of a page, and whether each element that was opened was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts(state: Callable[[], object]) -> str:
    page = Texts(tab.root_html(state))
    assert not page.open
    return "\n".join(page.texts)


def test_a_page_that_can_work_shows_no_problem_and_what_to_do_when_scripts_do_not_run() -> None:
    page = tab.root_html(lambda: State("ready"))
    assert "role=alert" not in page
    assert "<noscript>" in page and html.escape(tab.NO_SCRIPTS) in page
    assert all(html.escape(sentence) in page for sentence in tab.SCRIPTS_FAILED)


@pytest.mark.parametrize("state", list(tab.STATES))
def test_what_is_wrong_stands_on_the_page_before_any_script_runs(state: str) -> None:
    shown = texts(lambda: State(state, "No space left on device.", "Free 2 GB, then press Try again."))
    assert tab.STATES[state] in shown
    assert "No space left on device." in shown and "Free 2 GB, then press Try again." in shown


def test_an_error_in_looking_at_the_installation_is_shown_instead_of_raised() -> None:
    def broken() -> State:
        raise PermissionError("environments: permission denied")

    assert "PermissionError: environments: permission denied" in texts(broken)


def test_no_text_can_become_markup() -> None:
    page = Texts(tab.root_html(lambda: State("failed", "<script>alert(1)</script> & <b>")))
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert(1)</script> & <b>" in "".join(page.texts)


def test_the_tab_is_one_html_component_that_stores_nothing() -> None:
    pytest.importorskip("gradio")
    [(blocks, title, elem_id)] = tab.tab(lambda: State("ready"))
    components = [block for block in blocks.blocks.values() if hasattr(block, "value")]
    assert [type(component).__name__ for component in components] == ["HTML"]
    assert (title, elem_id) == ("DreamBooth", "dreambooth_trainer")
    assert not blocks.dependencies
