"""While a training has the card, what would put the WebUI's model back on it says so instead. Knows no WebUI."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException

Reason = Callable[[], str]
_MARK = "_dreambooth_original"


class CardBusy(HTTPException):
    """The card is a training's. As an answer of the WebUI's API it is a 503 that says so, without a traceback."""

    def __init__(self, reason: str) -> None:
        super().__init__(status_code=503, detail=reason)

    def __str__(self) -> str:
        return str(self.detail)


def original(function: Any) -> Any:
    """The function under one of ours, or the function itself: wrapping twice is wrapping once."""
    return getattr(function, _MARK, function)


def _marked(wrapper: Any, function: Any) -> Any:
    setattr(wrapper, _MARK, function)
    return wrapper


def refusing(function: Any, reason: Reason) -> Any:
    """`function`, which raises CardBusy while there is a reason."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        why = reason()
        if why:
            raise CardBusy(why)
        return function(*args, **kwargs)

    return _marked(guarded, function)


def saying(function: Any, reason: Reason) -> Any:
    """`function` of a Generate button (it gives pictures, their details as JSON, and two texts as HTML), which shows
    the reason in place of pictures while there is one."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        why = reason()
        if why:
            return [], "{}", f"<p class='dreambooth-busy'>{html.escape(why)}</p>", ""
        return function(*args, **kwargs)

    return _marked(guarded, function)


def unless(function: Any, condition: Callable[[], bool]) -> Any:
    """`function`, which does nothing while `condition` holds."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return None if condition() else function(*args, **kwargs)

    return _marked(guarded, function)
