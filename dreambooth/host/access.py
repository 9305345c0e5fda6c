"""Who may call our routes: whoever the WebUI's page or its API would let in, and no other site's page.

Neither `--gradio-auth` nor `--api-auth` protects the routes that an extension adds, so each of ours asks here.
Nothing is remembered: a call that is refused or let in leaves no trace.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import Any
from urllib.parse import urlsplit

from . import webui

_DEFAULT_PORTS = {"http": "80", "https": "443"}


def check(request: Any, app: Any) -> None:
    """Raises fastapi's HTTPException: 403 for a page of another site, 401 without the credentials that the WebUI's
    flags ask for. `app` is the FastAPI app, which in gradio's case knows who has logged in."""
    from fastapi import HTTPException

    origin = request.headers.get("origin")
    if origin is not None and not _is_own(origin, request.headers):
        raise HTTPException(403, "a page of another site may not do this")
    logins = getattr(app, "auth", None) is not None
    credentials = webui.api_credentials()
    if (not logins and not credentials) or (logins and _has_login(request.cookies, app)):
        return
    if credentials and _knows_password(request.headers.get("authorization", ""), credentials):
        return
    if logins:
        raise HTTPException(401, "not logged in: log in to the WebUI's page first")
    raise HTTPException(401, "name and password are those of --api-auth", {"WWW-Authenticate": "Basic"})


def _is_own(origin: str, headers: Any) -> bool:
    """Whether a page of this origin was served by us, or is one that `--cors-allow-origins` lets in."""
    named, pattern = webui.allowed_origins()
    if "*" in named or origin in named or (pattern and re.fullmatch(pattern, origin)):
        return True
    try:
        parts = urlsplit(origin)
        own = _with_port(parts.netloc, parts.scheme)
    except ValueError:
        return False
    return bool(own) and own == _with_port(headers.get("host", ""), parts.scheme)


def _with_port(place: str, scheme: str) -> str:
    """`place` in lower case without its scheme's usual port."""
    return place.lower().removesuffix(f":{_DEFAULT_PORTS.get(scheme, '')}")


def _has_login(cookies: Any, app: Any) -> bool:
    own = f"-{app.cookie_id}" if getattr(app, "cookie_id", None) else ""
    tokens = (cookies.get(f"{name}{own}") for name in ("access-token", "access-token-unsecure"))
    return any(token is not None and token in app.tokens for token in tokens)


def _knows_password(header: str, credentials: dict[str, str]) -> bool:
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    known = credentials.get(name)
    return known is not None and secrets.compare_digest(password.encode(), known.encode())
