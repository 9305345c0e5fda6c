"""While a training has the card, what would put the WebUI's model back on it says so instead. Knows no WebUI."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

Reason = Callable[[], str]
_MARK = "_dreambooth_original"
_REASON = "_dreambooth_reason"
_UNAVAILABLE = 503


def original(function: Any) -> Any:
    """The function under one of ours, or the function itself: wrapping twice is wrapping once."""
    return getattr(function, _MARK, function)


def _marked(wrapper: Any, function: Any) -> Any:
    setattr(wrapper, _MARK, function)
    return wrapper


def refusing(function: Any, reason: Reason) -> Any:
    """`function`, which raises fastapi's HTTPException 503 while there is a reason: the WebUI's API answers with it
    as it is, without a traceback in the console."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        why = reason()
        if why:
            from fastapi import HTTPException

            raise HTTPException(_UNAVAILABLE, why)
        return function(*args, **kwargs)

    setattr(guarded, _REASON, reason)
    return _marked(guarded, function)


def reason_now(function: Any) -> str:
    """Why a function that `refusing` gave would refuse now, empty if it would not."""
    reason = getattr(function, _REASON, None)
    return str(reason()) if reason else ""


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
