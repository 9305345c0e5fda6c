"""Who may call our routes, with each combination of the WebUI's flags, through a real app of fastapi's."""

from __future__ import annotations

import base64
import importlib
from typing import Any

import pytest

METHODS = ("GET", "POST", "DELETE")


def client(*, logins: bool, cookie_id: str = "") -> Any:
    """A client of an app with one route behind the check; `logins` as with --gradio-auth, where "tok" is logged in."""
    from fastapi import FastAPI, Request
    from fastapi.testclient import TestClient

    access = importlib.import_module("dreambooth.host.access")
    app = FastAPI()
    app.auth = {"me": "secret"} if logins else None
    app.tokens = {"tok": "me"}
    if cookie_id:
        app.cookie_id = cookie_id

    def route(request):
        access.check(request, app)
        return {"in": True}

    route.__annotations__["request"] = Request
    app.add_api_route("/x", route, methods=list(METHODS))
    return TestClient(app, base_url="http://webui:7860")


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


GOOD_COOKIE = {"Cookie": "access-token=tok"}
BAD_COOKIE = {"Cookie": "access-token=forged"}
GOOD_BASIC = basic("api", "pass:with:colons")
BAD_BASIC = basic("api", "wrong")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("logins", "api_auth", "headers", "status"),
    [
        (False, False, {}, 200),
        (False, False, BAD_COOKIE, 200),
        (True, False, {}, 401),
        (True, False, BAD_COOKIE, 401),
        (True, False, GOOD_BASIC, 401),
        (True, False, GOOD_COOKIE, 200),
        (False, True, {}, 401),
        (False, True, GOOD_COOKIE, 401),
        (False, True, BAD_BASIC, 401),
        (False, True, GOOD_BASIC, 200),
        (True, True, {}, 401),
        (True, True, BAD_COOKIE, 401),
        (True, True, BAD_BASIC, 401),
        (True, True, GOOD_COOKIE, 200),
        (True, True, GOOD_BASIC, 200),
    ],
)
def test_each_combination_of_flags_lets_in_whom_it_should(standin, method, logins, api_auth, headers, status):
    standin(*(("--api-auth", "other:x,api:pass:with:colons") if api_auth else ()))
    assert client(logins=logins).request(method, "/x", headers=headers).status_code == status


@pytest.mark.parametrize("name", ["access-token", "access-token-unsecure"])
def test_both_of_gradios_cookies_count(standin, name):
    standin()
    assert client(logins=True).get("/x", headers={"Cookie": f"{name}=tok"}).status_code == 200


def test_a_newer_gradios_cookies_carry_the_apps_id(standin):
    standin()
    own, other = {"Cookie": "access-token-ab12=tok"}, {"Cookie": "access-token-zz=tok"}
    newer = client(logins=True, cookie_id="ab12")
    assert newer.get("/x", headers=own).status_code == 200
    assert newer.get("/x", headers=other).status_code == 401
    assert newer.get("/x", headers=GOOD_COOKIE).status_code == 401


@pytest.mark.parametrize(
    "header", ["Basic", "Basic !!!", "Basic /w==", "Bearer tok", "basic", "Basic " + "A" * 9000]
)
def test_a_mangled_header_is_refused(standin, header):
    standin("--api-auth", "api:pass")
    assert client(logins=False).get("/x", headers={"Authorization": header}).status_code == 401


def test_the_browser_is_asked_for_name_and_password_only_where_they_would_help(standin):
    standin("--api-auth", "api:pass")
    assert client(logins=False).get("/x").headers["www-authenticate"] == "Basic"
    assert "www-authenticate" not in client(logins=True).get("/x").headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://webui:7860", 200),
        ("http://WebUI:7860", 200),
        ("http://evil.example", 403),
        ("http://webui:7861", 403),
        ("http://webui:7860.evil.example", 403),
        ("http://evil.example/webui:7860", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_page_of_another_site_is_refused_even_with_credentials(standin, origin, status, method):
    standin()
    headers = GOOD_COOKIE | ({} if origin is None else {"Origin": origin})
    assert client(logins=True).request(method, "/x", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://webui.example", "webui.example:443"),
        ("http://webui.example:80", "webui.example"),
        ("http://[::1]:7860", "[::1]:7860"),
    ],
)
def test_a_schemes_usual_port_is_the_same_place_named_or_not(standin, origin, host):
    standin()
    headers = {"Origin": origin, "Host": host}
    assert client(logins=False).post("/x", headers=headers).status_code == 200


def test_a_site_that_the_flags_let_in_is_let_in(standin):
    standin("--cors-allow-origins", "https://one.example,https://two.example")
    assert client(logins=False).post("/x", headers={"Origin": "https://two.example"}).status_code == 200
    assert client(logins=False).post("/x", headers={"Origin": "https://three.example"}).status_code == 403
    standin("--cors-allow-origins-regex", r"https://.*\.example")
    assert client(logins=False).post("/x", headers={"Origin": "https://three.example"}).status_code == 200
    assert client(logins=False).post("/x", headers={"Origin": "https://three.example.org"}).status_code == 403


def test_a_look_leaves_no_trace(standin):
    standin()
    looking = client(logins=True)
    before = dict(looking.app.tokens)
    looking.get("/x", headers=GOOD_COOKIE)
    assert looking.app.tokens == before
    assert looking.get("/x").status_code == 401  # nobody is remembered by address
