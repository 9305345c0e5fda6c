"""A page that is left open asks for the WebUI while that starts. One request between the server's first moment and
`create_api` lets starlette build the app's middleware, and the WebUI, which adds more of it then, ends with
"Cannot add middleware after an application has started". Until it is up, adding middleware builds it anew.
"""

from __future__ import annotations

from typing import Any

_kept: dict[str, Any] = {}  # starlette's own method, and ours in its place


def allow_early_requests() -> None:
    """From now on a request may come before the WebUI is ready. Twice is as once."""
    from starlette.applications import Starlette

    original = Starlette.add_middleware
    if original is _kept.get("ours"):
        return

    def add_middleware(self: Any, *arguments: Any, **options: Any) -> None:
        self.middleware_stack = None  # built at the next request, with all of it
        original(self, *arguments, **options)

    _kept.update(original=original, ours=add_middleware)
    Starlette.add_middleware = add_middleware


def as_before() -> None:
    """The WebUI is up: starlette is as it was, unless somebody else has put theirs over ours meanwhile."""
    from starlette.applications import Starlette

    if Starlette.add_middleware is _kept.get("ours"):
        Starlette.add_middleware = _kept["original"]
        _kept.clear()
