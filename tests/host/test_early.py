from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")

from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dreambooth.host import early

ORIGINAL = Starlette.add_middleware


@pytest.fixture(autouse=True)
def starlette_as_it_was() -> Iterator[None]:
    yield
    early.as_before()
    assert Starlette.add_middleware is ORIGINAL


def asked_too_early() -> FastAPI:
    app = FastAPI()
    app.get("/")(lambda: "here")
    assert TestClient(app).get("/").text == '"here"'
    return app


def add_header(app: FastAPI) -> None:
    @app.middleware("http")
    async def header(request: Request, go_on):
        answer = await go_on(request)
        answer.headers["x-added"] = "late"
        return answer


def test_the_webui_ends_when_it_is_asked_while_it_starts() -> None:
    with pytest.raises(RuntimeError, match="after an application has started"):
        add_header(asked_too_early())


def test_with_us_a_request_may_come_early_and_what_is_added_later_holds() -> None:
    early.allow_early_requests()
    app = asked_too_early()
    add_header(app)
    assert TestClient(app).get("/").headers["x-added"] == "late"


def test_once_the_webui_is_up_starlette_is_as_it_was() -> None:
    early.allow_early_requests()
    early.allow_early_requests()
    early.as_before()
    assert Starlette.add_middleware is ORIGINAL
    early.as_before()


def test_what_another_extension_has_put_over_ours_is_left_alone(monkeypatch) -> None:
    early.allow_early_requests()
    ours = Starlette.add_middleware

    def theirs(self, *arguments, **options):
        ours(self, *arguments, **options)

    monkeypatch.setattr(Starlette, "add_middleware", theirs)
    early.as_before()
    assert Starlette.add_middleware is theirs
    monkeypatch.undo()
