"""While a training has the card, what would put the WebUI's model back on it says so instead. Knows no WebUI."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Reason = Callable[[], str]
_MARK = "_dreambooth_original"
_REASON = "_dreambooth_reason"
_UNAVAILABLE = 503


@dataclass(frozen=True)
class Shown:
    """Where a button of the page shows a text: what it gives `before` and `after` the place that shows HTML."""

    before: tuple[Any, ...]
    after: tuple[Any, ...] = ()


def original(function: Any) -> Any:
    """The function under one of ours, or the function itself: wrapping twice is wrapping once."""
    return getattr(function, _MARK, function)


def _marked(wrapper: Any, function: Any) -> Any:
    setattr(wrapper, _MARK, function)
    return wrapper


@functools.lru_cache(maxsize=1)
def _refusal() -> Any:
    """An error that the WebUI's API answers with as it is, without a traceback in the console, and whose text the page
    shows: fastapi's HTTPException and gradio's Error in one."""
    from fastapi import HTTPException
    from gradio import Error

    class CardIsBusy(HTTPException, Error):
        def __init__(self, why: str) -> None:
            HTTPException.__init__(self, _UNAVAILABLE, why)
            self.message = why

        def __str__(self) -> str:
            return str(self.detail)

    return CardIsBusy


def refusing(
    function: Any,
    reason: Reason,
    first: Callable[[], object] | None = None,
    failed: Callable[[Exception], object] = lambda error: None,
) -> Any:
    """`function`, which raises an error with the reason while there is one: 503 in the API, a message in the page.
    Otherwise `first` is called before it, and `failed` hears what it raises."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        why = reason()
        if why:
            raise _refusal()(why)
        if first is not None:
            first()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            failed(error)
            raise

    setattr(guarded, _REASON, reason)
    return _marked(guarded, function)


def reason_now(function: Any) -> str:
    """Why a function that `refusing` gave would refuse now, empty if it would not."""
    reason = getattr(function, _REASON, None)
    return str(reason()) if reason else ""


def saying(function: Any, reason: Reason, shown: Shown) -> Any:
    """`function` of a button of the page, which shows the reason in place of its results while there is one."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        why = reason()
        if why:
            text = f"<p class='dreambooth-busy'>{html.escape(why)}</p>"
            return (*shown.before, text, *shown.after)
        return function(*args, **kwargs)

    return _marked(guarded, function)


def unless(function: Any, condition: Callable[[], bool]) -> Any:
    """`function`, which does nothing while `condition` holds."""
    return instead(function, lambda *args, **kwargs: condition(), lambda: None)


def instead(function: Any, condition: Callable[..., bool], other: Callable[[], Any]) -> Any:
    """`function`, in whose place `other` is called where `condition` holds of its arguments."""
    function = original(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return other() if condition(*args, **kwargs) else function(*args, **kwargs)

    return _marked(guarded, function)
