"""The real WebUI, with each combination of its flags: our routes ask for what protects its page or its API.

Runs where DREAMBOOTH_WEBUI names a folder with the WebUI installed.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from asking import PREFIX
from servers import Server, install_extension, real_webui

pytestmark = [pytest.mark.slow, pytest.mark.webui]
GRADIO, API = ("--gradio-auth", "me:pw"), ("--api-auth", "robot:password")
FLAGS = {"none": (), "gradio": GRADIO, "api": API, "both": (*GRADIO, *API)}


def answer(
    method: str, url: str, headers: dict[str, str], body: bytes | None = None
) -> tuple[int, str | None]:
    """The status, and the cookie that is set."""
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.headers["Set-Cookie"]
    except urllib.error.HTTPError as error:
        return error.code, None


def calls(webui: Server) -> list[tuple[str, str]]:
    """Every call that the WebUI's own documentation lists of ours, with names filled in that there are not."""
    with urllib.request.urlopen(f"{webui.url}/openapi.json", timeout=60) as found:
        paths = json.loads(found.read())["paths"]
    return [
        (method.upper(), re.sub(r"\{\w+\}", "nothing", path))
        for path, methods in paths.items()
        if path.startswith(PREFIX)
        for method in methods
    ]


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def logged_in(webui: Server) -> dict[str, str]:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, cookie = answer("POST", f"{webui.url}/login", form, b"username=me&password=pw")
    assert status == 200 and cookie
    return {"Cookie": cookie.partition(";")[0]}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_our_routes_are_protected_as_the_webui_is(flags, tmp_path):
    data = tmp_path / "data"
    install_extension(data)
    webui = real_webui(
        Path(os.environ["DREAMBOOTH_WEBUI"]), data, "--skip-load-model-at-start", *flags
    ).start(300)
    try:
        good = [logged_in(webui)] if "--gradio-auth" in flags else []
        good += [basic("robot", "password")] if "--api-auth" in flags else []
        bad = [{}, {"Cookie": "access-token=forged"}, basic("robot", "wrong")] if flags else []
        found = calls(webui)
        assert len(found) >= 24
        for method, path in found:
            # what is no JSON, so that a call that is let in does nothing
            body = None if method in ("GET", "DELETE") else b"{"
            for headers in bad:
                assert answer(method, webui.url + path, headers, body)[0] == 401, (method, path, headers)
            for headers in good or [{}]:
                assert answer(method, webui.url + path, headers, body)[0] not in (401, 403), (method, path)
                foreign = {**headers, "Origin": "http://evil.example"}
                assert answer(method, webui.url + path, foreign, body)[0] == 403, (method, path)
    finally:
        webui.stop()
