"""The tab's root: one gr.HTML that says at once what is wrong, and that javascript/ then fills.

No other gradio component is used: none of ours has a value that the WebUI would store, a label that it would
confuse, or a place in its queue.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, Protocol

TITLE = "DreamBooth"
ELEM_ID = "dreambooth_trainer"
STARTING = "The page is being drawn …"
NO_SCRIPTS = "This tab is drawn by JavaScript. Allow it for this page, then reload."
# shown by style.css when nothing has replaced the first content after some seconds
SCRIPTS_FAILED = (
    "Still nothing? Then the extension's scripts did not run: reload the page with Ctrl+F5.",
    "If that does not help, the browser's console (F12) names the reason.",
)
STATES = {
    "making": "The trainer's environment is being made. This happens once and takes some minutes.",
    "missing": "The trainer's environment is missing, so nothing can be trained yet.",
    "failed": "The trainer's environment could not be made.",
    "broken": "The trainer's environment does not work.",
}


class Installation(Protocol):
    """What installation.state() gives; `state` is ready, or one of STATES."""

    state: str
    text: str
    remedy: str


def tab(state: Callable[[], Installation]) -> list[tuple[Any, str, str]]:
    """What the WebUI's on_ui_tabs wants. `state` is asked now, so that the page is never blank."""
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML(value=root_html(state), elem_id=f"{ELEM_ID}_html")
    return [(blocks, TITLE, ELEM_ID)]


def root_html(state: Callable[[], Installation]) -> str:
    """The page before its scripts run. Whatever `state` raises is shown, since a tab that says why is worth
    more than one that is absent."""
    try:
        found = state()
        wrong = [] if found.state == "ready" else [STATES.get(found.state, ""), found.text, found.remedy]
    except Exception as error:  # noqa: BLE001 -- see above
        wrong = ["The extension could not look at its installation.", f"{type(error).__name__}: {error}"]
    return (
        f'<div id="{ELEM_ID}_root" class="dbt">'
        f"{_paragraph('dbt-problem', *wrong, more=' role=alert') if wrong else ''}"
        f"{_paragraph('dbt-starting', STARTING)}"
        f"<noscript>{_paragraph('dbt-problem', NO_SCRIPTS)}</noscript>"
        f"{_paragraph('dbt-late', *SCRIPTS_FAILED)}"
        "</div>"
    )


def _paragraph(name: str, *sentences: str, more: str = "") -> str:
    # the WebUI translates a text where it is the whole of an element: one element for each sentence
    spans = " ".join(f"<span>{html.escape(text)}</span>" for text in sentences if text)
    return f'<p class="{name}"{more}>{spans}</p>'
