"""Where extensions register. Each callback is called by itself, so that one that fails fails alone."""

import inspect
from collections import defaultdict
from typing import NamedTuple

from modules import errors


class ScriptCallback(NamedTuple):
    script: str
    callback: object


_callbacks = defaultdict(list)
_KINDS = (
    *("app_started", "before_reload", "model_loaded", "ui_tabs", "ui_train_tabs", "ui_settings", "before_ui"),
    *("script_unloaded", "before_component", "after_component", "image_saved", "before_image_saved"),
)


def _registrar(kind):
    def register(callback, *, name=None):
        script = next((frame.filename for frame in inspect.stack() if frame.filename != __file__), "unknown")
        _callbacks[kind].append(ScriptCallback(script, callback))

    register.__name__ = f"on_{kind}"
    return register


for _kind in _KINDS:
    globals()[f"on_{_kind}"] = _registrar(_kind)


def run(kind, *arguments):
    """Calls every callback of that kind, and gives what those that did not fail gave."""
    results = []
    for one in list(_callbacks[kind]):
        try:
            results.append(one.callback(*arguments))
        except Exception:
            errors.report(f"Error executing callback {kind} for {one.script}", exc_info=True)
    return results


def clear_callbacks():
    _callbacks.clear()
