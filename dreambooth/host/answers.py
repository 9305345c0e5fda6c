"""How our routes answer: who may call is asked before anything is read, and every problem has one shape."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..shared.errors import DreamboothError, InputError
from . import access

_log = logging.getLogger(__name__)


class NotFound(InputError):
    """What was asked for is not there (404)."""


class Conflict(InputError):
    """What was asked for cannot be now, because of something that runs (409)."""


class Forbidden(InputError):
    """The WebUI's flags or the way it is laid out forbid it (403)."""


_STATUS: tuple[tuple[type[DreamboothError], int], ...] = (
    (NotFound, 404), (Conflict, 409), (Forbidden, 403), (InputError, 400), (DreamboothError, 503),
)  # fmt: skip


class Json(JSONResponse):
    """JSON as JavaScript reads it: numbers that are none become null, half surrogates their escapes."""

    def render(self, content: Any) -> bytes:
        """The body. Paths and other things that JSON does not know become text."""
        try:
            text = _dump(content)
        except ValueError:
            text = _dump(_finite(content))
        return text.encode(errors="backslashreplace")


def _dump(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class Guarded(APIRoute):
    """A route that asks who is calling before it reads anything of the call.

    A dependency would be asked after the body was read: whoever may not call could fill the disk with it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler between the check and the shape of errors."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                access.check(request, request.app)
                return await handle(request)
            except Exception as error:  # noqa: BLE001 -- every problem is answered in one shape
                return problem(error)

        return guarded


@contextlib.asynccontextmanager
async def caller(request: Request) -> AsyncIterator[threading.Event]:
    """Of a call whose body was read: set as soon as whoever called does not wait for the answer any more.

    Waited for, not asked for now and then: behind a middleware of Starlette's `is_disconnected` never becomes true.
    """
    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watching = asyncio.ensure_future(watch())
    try:
        yield gone
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def problem(error: Exception) -> Response:
    """What is answered for an error: `{"error": {"text", "where", "remedy"}}`, what there is `more`, and its status."""
    if isinstance(error, DreamboothError):
        status = next(code for kind, code in _STATUS if isinstance(error, kind))
        return Json({**error.more, "error": error.as_json()}, status)
    if isinstance(error, HTTPException):
        return _shaped(str(error.detail), error.status_code, headers=getattr(error, "headers", None))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return _shaped(f"the call is wrong: {first['msg']}", 400, where=where, remedy="see /docs")
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    _log.error("DreamBooth: a call failed", exc_info=error)
    return _shaped(
        f"a mistake in the extension: {type(error).__name__}: {error}", 500,
        remedy="the WebUI's console has more; please report it",
    )  # fmt: skip


def _shaped(
    text: str, status: int, *, where: str = "", remedy: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    body = {"error": {"text": text, "where": where, "remedy": remedy}}
    return Json(body, status, headers=dict(headers or {}))
