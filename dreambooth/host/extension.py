"""Brings the extension into the WebUI: the tab, the routes, the section in Settings, the guard of the card.

Whatever of it fails says why where the user looks, and nothing of it can keep the WebUI from starting.
"""

from __future__ import annotations

import html
import logging
import traceback
from typing import Any

from ..shared.errors import DreamboothError
from . import early, guarding, installation, webui

PREFIX = "/dreambooth-trainer/v1"
_log = logging.getLogger(__name__)


def register() -> None:
    """Called by scripts/dreambooth_trainer.py, again after each "Reload UI"."""
    early.allow_early_requests()
    webui.register(tab=tab, app=app_started)
    guarding.guard(busy_reason)


def tab() -> list[tuple[Any, str, str]]:
    """What on_ui_tabs wants; where the page cannot be drawn, a tab that says why."""
    try:
        from .tab import tab as draw

        return draw(installation.state)
    except Exception as error:  # noqa: BLE001 -- a tab that says why is worth more than one that is absent
        _log.exception("the DreamBooth tab cannot be drawn")
        return explaining_tab(error)


def explaining_tab(error: BaseException) -> list[tuple[Any, str, str]]:
    """A tab that shows an error and where it came from."""
    import gradio

    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML(f"<p>The DreamBooth tab cannot be drawn:</p><pre>{html.escape(told)}</pre>")
    return [(blocks, "DreamBooth", "dreambooth_trainer")]


def app_started(app: Any) -> None:
    """Adds the routes, and begins the making of the trainer's environment where install.py did not (`--skip-install`)."""
    early.as_before()
    try:
        installation.start()
    except DreamboothError as error:
        _log.warning("DreamBooth: %s", error)
    except Exception:  # noqa: BLE001 -- logged, and the page can still say more
        _log.exception("DreamBooth: the trainer's environment cannot be looked at")
    try:
        from . import routes

        routes.add_to(app)
    except Exception as error:  # noqa: BLE001 -- said by every route from then on
        _log.exception("DreamBooth: the routes cannot be added")
        _add_explanation(app, error)


def _add_explanation(app: Any, error: Exception) -> None:
    """In place of all routes: why there are none."""
    from fastapi.responses import JSONResponse

    from . import access

    text = f"the extension's routes cannot be added: {type(error).__name__}: {error}"

    def explain(request: Any) -> Any:
        access.check(request, app)
        body = {"text": text, "where": "", "remedy": "update the extension and the WebUI, and restart it"}
        return JSONResponse({"error": body}, status_code=503)

    # a route of starlette's, since fastapi would want to understand the annotations
    app.add_route(PREFIX + "/{rest:path}", explain, methods=["GET", "POST", "DELETE"])


def busy_reason() -> str:
    """Why Generate has to wait, empty if it need not: a training has the card and the user has not allowed both."""
    try:
        if webui.options().allow_generate_while_training:
            return ""
        from . import jobs

        return jobs.busy_reason()
    except Exception:  # noqa: BLE001 -- a mistake of ours must not keep anybody from generating
        _log.exception("DreamBooth: whether a training runs cannot be told")
        return ""
