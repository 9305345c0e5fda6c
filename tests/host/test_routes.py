"""The REST routes as a client meets them: who is let in, what is answered, and what no call can do."""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from test_uploads import bomb, picture
from walking import wait_until

from dreambooth.shared.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/dreambooth-trainer/v1"
FORM = {"max_train_steps": 400, "output_name": "dog", "concepts": [{"instance_prompt": "photo of ohwx dog"}]}
USER = ("me", "pw")
FLAGS = {"none": (), "gradio": ("gradio",), "api": ("api",), "both": ("gradio", "api")}


@dataclass
class Site:
    """A WebUI's app with our routes, in this process; the fake trainer trains."""

    webui: Any
    app: FastAPI
    client: TestClient
    services: Any

    def get(self, path: str, **more: Any) -> Any:
        return self.client.get(PREFIX + path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self.client.post(PREFIX + path, json={} if body is None else body, **more)

    def start(self, **form: Any) -> str:
        answer = self.post("/runs", {"form": {**FORM, **form}})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["run"])

    def live(self, run: str) -> dict[str, Any]:
        return dict(self.get(f"/runs/{run}/live").json())

    def until(
        self, run: str, holds: Callable[[dict[str, Any]], Any], patience: float = 30.0
    ) -> dict[str, Any]:
        deadline = time.monotonic() + patience
        while not holds(found := self.live(run)):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        return found


@pytest.fixture
def site(standin, monkeypatch) -> Iterator[Callable[..., Site]]:
    """`site("--flag", FAKE_PACE="0.1")`"""
    made: list[Site] = []

    def begin(*flags: str, auth: tuple[str, ...] = (), **behaviour: str) -> Site:
        basic = ["--api-auth", ":".join(USER)] if "api" in auth else []
        webui = standin(*flags, *basic)
        webui.checkpoint("base")
        webui.sd_models.list_models()
        installation = importlib.import_module("dreambooth.host.installation")
        monkeypatch.setattr(
            installation, "trainer_command", lambda: [sys.executable, str(ROOT / "tests" / "fake_command.py")]
        )
        monkeypatch.setattr(installation, "trainer_environ", lambda **_: {**os.environ, **behaviour})
        app = FastAPI()
        if "gradio" in auth:
            app.auth, app.tokens = {USER[0]: USER[1]}, {"a-token": USER[0]}  # type: ignore[attr-defined]
        importlib.import_module("dreambooth.host.routes").add_to(app)
        services = importlib.import_module("dreambooth.host.services").services()
        made.append(Site(webui, app, TestClient(app, raise_server_exceptions=False), services))
        return made[-1]

    yield begin
    for one in made:
        _end(one)


def _end(site: Site) -> None:
    """No trainer and no thread outlives its test: the next one has other modules of the WebUI."""
    jobs = site.services.jobs
    for job in jobs.jobs():
        if jobs._is_alive(job):
            os.kill(job.pid, signal.SIGKILL)
    for process in jobs._processes.values():
        process.wait()
    newest = importlib.import_module("dreambooth.host.services").services()
    for follower in (site.services.follower, newest.follower):
        follower._pause.set()
        thread = follower._thread
        if thread is not None:
            thread.join(10)
            assert not thread.is_alive()
    site.client.close()


# who is let in


def calls(app: FastAPI) -> list[tuple[str, str]]:
    """Every call that there is, with names filled in that there are not."""
    return [
        (method, re.sub(r"\{\w+\}", "nothing", route.path))
        for route in app.routes
        if isinstance(route, APIRoute) and route.path.startswith(PREFIX)
        for method in sorted(route.methods)
    ]


def credentials(kind: tuple[str, ...]) -> dict[str, str]:
    if "gradio" in kind:
        return {"cookie": "access-token=a-token"}
    if "api" in kind:
        return {"authorization": "Basic " + base64.b64encode(":".join(USER).encode()).decode()}
    return {}


def ask(site: Site, method: str, path: str, headers: dict[str, str], body: bytes = b"{") -> int:
    """The status of a call whose body is broken, so that a route that is let in does nothing."""
    more = {} if method in ("GET", "DELETE") else {"content": body}
    return int(site.client.request(method, path, headers=headers, **more).status_code)


def test_there_are_the_routes_that_the_page_asks(site):
    paths = {path.removeprefix(PREFIX) for _, path in calls(site().app)}
    assert {"/page", "/schema", "/plan", "/runs", "/runs/nothing/live", "/photos", "/open", "/save"} <= paths
    assert len(paths) >= 24


@pytest.mark.parametrize("auth", FLAGS.values(), ids=FLAGS)
def test_each_route_is_refused_without_and_let_in_with_credentials(site, auth, monkeypatch):
    one = site(auth=auth)
    monkeypatch.setattr(importlib.import_module("dreambooth.host.installation"), "start", lambda: None)
    wrong = {
        "authorization": "Basic " + base64.b64encode(b"me:wrong").decode(),
        "cookie": "access-token=another",
    }
    for method, path in calls(one.app):
        if auth:
            assert ask(one, method, path, {}) == 401, (method, path)
            assert ask(one, method, path, wrong) == 401, (method, path)
        assert ask(one, method, path, credentials(auth)) not in (401, 403), (method, path)


@pytest.mark.parametrize("auth", FLAGS.values(), ids=FLAGS)
def test_each_route_is_refused_to_another_sites_page(site, auth):
    one = site(auth=auth)
    for method, path in calls(one.app):
        for origin in (
            "http://evil.example",
            "null",
            "http://testserver.evil.example",
            "http://testserver:81",
        ):
            assert ask(one, method, path, {**credentials(auth), "origin": origin}) == 403, (method, path)


def test_the_webuis_own_page_is_let_in(site):
    assert site().get("/schema", headers={"origin": "http://testserver"}).status_code == 200


def test_a_refusal_has_the_shape_of_every_error(site):
    answer = site(auth=("api",)).get("/page")
    assert set(answer.json()["error"]) == {"text", "where", "remedy"}
    assert answer.headers["www-authenticate"] == "Basic"


def test_whoever_may_not_call_has_nothing_read_of_what_is_sent(site, monkeypatch):
    one = site(auth=("gradio",))
    from starlette.requests import Request

    for name in ("form", "body", "stream", "json"):
        monkeypatch.setattr(Request, name, lambda self: pytest.fail("the body was read"))
    for method, path in calls(one.app):
        assert ask(one, method, path, {}, body=b"x" * 1000) == 401


def test_writes_are_post_or_delete_and_looking_changes_nothing(site):
    one = site()
    assert {method for method, _ in calls(one.app)} == {"GET", "POST", "DELETE"}
    before = sorted(path for path in one.webui.data.rglob("*"))
    for method, path in calls(one.app):
        if method == "GET":
            one.client.get(path, params={"path": "x", "id": "x"})
    assert sorted(path for path in one.webui.data.rglob("*")) == before


def test_every_route_stands_in_the_docs(site):
    one = site()
    documented = one.client.get("/openapi.json").json()["paths"]
    for route in one.app.routes:
        if isinstance(route, APIRoute) and route.path.startswith(PREFIX):
            for method in route.methods:
                assert documented[route.path][method.lower()]["summary"], route.path


# the page and the form


def test_the_page_gets_all_that_it_is_drawn_from(site):
    one = site("--medvram")
    page = one.get("/page").json()
    assert set(page) >= {
        "version", "installation", "groups", "concept_fields", "presets", "checkpoints", "vaes", "flags", "options",
        "form", "kept", "active", "listed", "places",
    }  # fmt: skip
    assert [model["name"] for model in page["checkpoints"]] == ["base.safetensors"]
    assert page["form"]["model"] == page["checkpoints"][0]["path"]
    assert page["flags"]["low_memory"] == "medvram"
    assert page["active"] == ""


def test_a_form_is_remembered(site):
    one = site()
    about = {"preset": "style", "typed": ["resolution"], "family": "sdxl"}
    assert one.post("/form", {"form": {"resolution": "wrong", "concepts": []}, **about}).status_code == 200
    page = one.get("/page").json()
    assert page["form"] == {"resolution": "wrong", "concepts": []} and page["kept"] == about


def test_a_form_is_saved_as_yaml(site):
    one = site()
    answer = one.post("/save", {"form": FORM}).json()
    assert answer["name"] == "dog.yaml"
    assert one.post("/open", {"kind": "file", "content": answer["yaml"], "name": "x"}).json()["form"] == FORM


@pytest.mark.parametrize(("kind", "place"), [("checkpoint", "Stable-diffusion"), ("lora", "Lora")])
def test_what_is_saved_goes_on_the_command_line_where_it_goes_in_the_tab(site, kind, place):
    one = site()
    form = {**FORM, "output_kind": kind}
    run = one.start(output_kind=kind)
    begun = yaml.safe_load((one.webui.data / "dreambooth" / "runs" / run / "config.yaml").read_text())
    saved = yaml.safe_load(one.post("/save", {"form": form}).json()["yaml"])
    assert saved["output_dir"] == str(one.webui.data / "models" / place) == begun["output_dir"]
    assert saved["runs_dir"] == str(one.webui.data / "dreambooth" / "runs") == begun["runs_dir"]


def test_a_place_that_was_chosen_is_in_the_file_and_in_the_form_that_it_is_opened_as(site, tmp_path):
    one = site()
    answer = one.post("/save", {"form": {**FORM, "output_dir": str(tmp_path)}}).json()
    opened = one.post("/open", {"kind": "file", "content": answer["yaml"], "name": "x"}).json()
    assert opened == {"form": {**FORM, "output_dir": str(tmp_path)}, "not_taken": []}


def test_a_plan_is_the_trainers(site):
    assert site().post("/plan", {"form": FORM}).json()["steps"] == 400


def test_what_is_wrong_with_a_form_is_said_of_its_field(site):
    one = site()
    for route in ("/plan", "/runs", "/save"):
        answer = one.post(route, {"form": {"train_batch_size": 0}})
        assert (answer.status_code, answer.json()["error"]["where"]) == (400, "train_batch_size")
    answer = one.post("/plan", {"form": {"output_name": "wrong"}})
    assert (answer.status_code, answer.json()["error"]["where"]) == (400, "output_name")


def test_what_the_trainer_says_of_a_dropped_photo_names_it_as_its_owner_did(site, monkeypatch):
    one = site()
    sent = one.client.post(
        PREFIX + "/photos", files=[("files", ("holiday.png", picture(), "image/png"))]
    ).json()
    kept = f"{sent['path']}{os.sep}{sent['files'][0]['name']}"

    def refuse(*_: Any) -> Any:
        raise errors.InputError(f"An image cannot be used: {kept}: it is damaged.")

    errors = importlib.import_module("dreambooth.shared.errors")
    monkeypatch.setattr(one.services.planner, "plan", refuse)
    monkeypatch.setattr(one.services.jobs, "start", refuse)
    for route in ("/plan", "/runs"):
        answer = one.post(route, {"form": FORM}).json()
        assert answer["error"]["text"] == "An image cannot be used: holiday.png: it is damaged."
    monkeypatch.setattr(
        one.services.planner, "plan", lambda *_: {"notes": [f"image left out: {kept}: it is damaged"]}
    )
    assert one.post("/plan", {"form": FORM}).json()["notes"] == ["image left out: holiday.png: it is damaged"]


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ({"kind": "file", "path": "/x.yaml"}, "content"),
        ({"kind": "path", "content": "rank: 4"}, "path"),
        ({"kind": "run"}, "run"),
        ({"kind": ""}, "kind"),
    ],
)
def test_opening_without_what_the_kind_needs_says_what_is_missing(site, body, missing):
    error = site().post("/open", body).json()["error"]
    assert error["where"] == missing
    assert error["text"].startswith(f"`{missing}` is missing")


def test_a_name_that_captures_a_vae_is_said_in_the_plan(site):
    one = site()
    vae = one.webui.data / "models" / "VAE" / "dog-kl.vae.safetensors"
    vae.parent.mkdir(parents=True, exist_ok=True)
    vae.write_bytes(b"x")
    one.webui.sd_vae.refresh_vae_list()
    assert "dog-kl" in one.post("/plan", {"form": FORM}).json()["notes"][0]


@pytest.mark.parametrize("kind", ["checkpoint", "lora", "diffusers"])
def test_a_folder_that_the_webui_does_not_look_into_is_said_in_the_plan(site, tmp_path, kind):
    one = site()

    def notes(folder: Path) -> list[str]:
        form = {**FORM, "output_kind": kind, "output_dir": str(folder)}
        return one.post("/plan", {"form": form}).json()["notes"]

    own = one.webui.data / "models" / ("Lora" if kind == "lora" else "Stable-diffusion")
    (own / "link").parent.mkdir(parents=True, exist_ok=True)
    (own / "link").symlink_to(tmp_path, target_is_directory=True)
    assert notes(own) == notes(own / "pets") == notes(own / "link") == []
    told = notes(tmp_path / "elsewhere")
    assert bool(told) == (kind != "diffusers"), "no folder in diffusers' form is for the WebUI"
    if told:
        assert str(tmp_path / "elsewhere") in told[0] and "leave output_dir empty" in told[0]


def test_without_an_environment_a_plan_says_what_to_do(site, monkeypatch):
    one = site()
    installation = importlib.import_module("dreambooth.host.installation")
    missing = installation.Installation("missing", "There is no environment yet.", "Press the button.", [])
    monkeypatch.setattr(installation, "state", lambda: missing)
    for path in ("/plan", "/runs"):
        answer = one.post(path, {"form": FORM})
        assert answer.status_code == 503
        assert answer.json()["error"]["remedy"] == "Press the button."
    assert one.get("/page").json()["installation"]["state"] == "missing"


@pytest.mark.parametrize("body", [{}, {"form": 7}, [], None, {"form": {"concepts": 7}}])
def test_a_call_of_another_shape_is_refused_in_one_shape(site, body):
    answer = site().client.post(PREFIX + "/plan", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["text"]


def test_a_plan_ends_with_the_page_that_asked_for_it(site):
    """Through a real server, and a middleware as the WebUI's API has one."""
    one = site(FAKE_DELAY="60")
    one.app.middleware("http")(lambda request, go_on: go_on(request))
    server = uvicorn.Server(uvicorn.Config(one.app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    planner = one.services.planner
    try:
        wait_until(lambda: server.started, "it listens")
        port = server.servers[0].sockets[0].getsockname()[1]
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"form": FORM, "page": "me"})
        connection.request("POST", f"{PREFIX}/plan", body, {"Content-Type": "application/json"})
        wait_until(lambda: "me" in planner._asked and planner._asked["me"].process, "it is being planned")
        process = planner._asked["me"].process
        assert process.poll() is None
        connection.close()
        wait_until(lambda: process.poll() is not None, "the trainer is ended", 20)
    finally:
        server.should_exit = True
        thread.join(20)


def test_the_small_base_is_put_where_the_webui_lists_it(site):
    one = site()
    found = one.post("/models/small-base").json()
    assert Path(found["path"]).parent == one.webui.data / "models" / "Stable-diffusion"
    assert found["path"] in [model["path"] for model in found["checkpoints"]]
    assert one.get("/models/inspect", params={"path": found["path"]}).status_code == 200


def test_only_files_that_the_webui_lists_are_inspected(site):
    one = site()
    listed = one.get("/models").json()["checkpoints"][0]["path"]
    assert one.get("/models/inspect", params={"path": listed}).json()["family"] == "Stable Diffusion 1"
    for path in ("/etc/passwd", listed + "/../base.safetensors", "base.safetensors", ""):
        assert one.get("/models/inspect", params={"path": path}).status_code == 400


# runs


def test_a_run_from_its_start_to_its_result_in_use(site):
    one = site(FAKE_PACE="0.002")
    run = one.start(max_train_steps=40, validation_steps=10)
    assert run == "dog"
    done = one.until(run, lambda live: live["state"] == "finished")
    assert done["step"] == done["of"] == 40
    assert done["chart"]["steps"][-1] == 40
    assert done["samples"][0]["step"] == 0
    picture = one.client.get(done["samples"][-1]["url"])
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    summary = one.get(f"/runs/{run}").json()
    assert summary["plan"]["steps"] == 40 and summary["exports"]
    listed = one.get("/runs").json()
    assert [(row["name"], row["state"]) for row in listed["runs"]] == [("dog", "finished")]
    assert listed["active"] == ""
    form = one.get(f"/runs/{run}/form").json()["form"]
    assert form["max_train_steps"] == 40 and "learning_rate" not in form, "as it was asked for"


def test_a_runs_log_names_dropped_photos_as_their_owner_did(site):
    one = site()
    sent = one.client.post(
        PREFIX + "/photos", files=[("files", ("holiday.png", picture(), "image/png"))]
    ).json()
    run = one.start(max_train_steps=2)
    one.until(run, lambda live: live["state"] == "finished")
    log = one.webui.data / "dreambooth" / "runs" / run / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"image left out: {sent['path']}{os.sep}{sent['files'][0]['name']}: it is damaged\n")
    assert one.live(run)["log"][-1] == "image left out: holiday.png: it is damaged"


def test_a_second_run_is_refused_while_one_is_alive(site):
    one = site(FAKE_PACE="0.05")
    run = one.start()
    for answer in (one.post("/runs", {"form": FORM}), one.post(f"/runs/{run}/resume")):
        assert answer.status_code == 409
        assert "dog" in answer.json()["error"]["text"]
    assert one.get("/page").json()["active"] == "dog"
    assert one.get("/runs").json()["active"] == "dog"


def test_what_runs_and_whether_anything_is_new_is_told_in_a_few_bytes(site):
    one = site(FAKE_PACE="0.02")
    before = one.get("/active").json()
    run = one.start(max_train_steps=20)
    during = one.get("/active")
    assert (before["active"], during.json()["active"]) == ("", run)
    assert not during.json()["starting"] and len(during.content) < 500
    assert during.json()["runs"] != before["runs"], "a run was made"
    one.until(run, lambda live: live["state"] == "finished")
    path = whole_export(one, run)
    one.post(f"/runs/{run}/use", {"path": str(path)})
    after = one.get("/active").json()
    assert after["active"] == ""
    assert after["listed"] > before["listed"], "checkpoints were listed anew"
    assert one.client.delete(f"{PREFIX}/runs/{run}").status_code == 200
    assert one.get("/active").json()["runs"] != after["runs"], "a run was deleted"


def test_a_run_is_told_to_stop_and_goes_on(site):
    one = site(FAKE_PACE="0.02")
    run = one.start(checkpointing_steps=5)
    one.until(run, lambda live: live["step"] > 3)
    told = one.post(f"/runs/{run}/commands", {"do": "stop"}).json()["id"]
    stopped = one.until(run, lambda live: live["state"] == "stopped")
    assert told in stopped["acks"]
    assert one.post(f"/runs/{run}/commands", {"do": "save"}).status_code == 409
    assert one.post(f"/runs/{run}/resume").json() == {"run": run}
    assert one.until(run, lambda live: live["step"] > stopped["step"])["state"] == "running"
    assert one.post(f"/runs/{run}/commands", {"do": "explode"}).status_code == 400


def test_a_trainer_that_would_not_go_on_with_a_run_says_why(site, monkeypatch):
    one = site(FAKE_PACE="0.02")
    run = one.start()
    one.until(run, lambda live: live["step"] > 0)  # the fake one takes earlier commands for an earlier life's
    one.post(f"/runs/{run}/commands", {"do": "stop"})
    one.until(run, lambda live: live["state"] == "stopped")
    installation = importlib.import_module("dreambooth.host.installation")
    monkeypatch.setattr(installation, "trainer_environ", lambda: {**os.environ, "FAKE_REFUSES": "1"})
    assert one.post(f"/runs/{run}/resume").status_code == 200
    found = one.until(run, lambda live: live["state"] != "running")
    assert found["state"] == "failed"
    assert found["error"] == {"text": "the photos are gone", "remedy": "bring them back"}
    assert one.get(f"/runs/{run}").json()["error"] == found["error"]


@pytest.mark.parametrize("do", ["stop", "stop_now"])
def test_a_trainer_that_is_on_its_way_to_a_run_and_hears_nothing_yet_is_stopped(site, monkeypatch, do):
    one = site(FAKE_PACE="0.02")
    run = one.start()
    one.until(run, lambda live: live["step"] > 0)
    one.post(f"/runs/{run}/commands", {"do": "stop"})
    one.until(run, lambda live: live["state"] == "stopped")
    deaf = "import json, sys, time; open(sys.argv[-1], 'w').write(json.dumps({'run': sys.argv[2]})); time.sleep(99)"
    installation = importlib.import_module("dreambooth.host.installation")
    monkeypatch.setattr(installation, "trainer_command", lambda: [sys.executable, "-c", deaf])
    assert one.post(f"/runs/{run}/resume").json() == {"run": run}
    refused = one.post(f"/runs/{run}/commands", {"do": "save"})
    assert refused.status_code == 409 and "just starting" in refused.json()["error"]["text"]
    assert one.post(f"/runs/{run}/commands", {"do": do}).json() == {"id": ""}
    assert one.until(run, lambda live: live["state"] != "running")["state"] == "stopped"
    assert one.get("/runs").json()["active"] == ""


def test_after_reload_ui_the_new_app_has_the_routes_over_the_same_runs(site):
    one = site(FAKE_PACE="0.05")
    run = one.start()
    app = FastAPI()
    importlib.import_module("dreambooth.host.routes").add_to(app)
    with TestClient(app) as again:
        assert again.get(PREFIX + "/runs").json()["active"] == run
        assert again.post(PREFIX + "/runs", json={"form": FORM}).status_code == 409


def test_while_a_run_is_alive_generate_says_why(site):
    one = site(FAKE_PACE="0.05")
    jobs = importlib.import_module("dreambooth.host.jobs")
    assert jobs.busy_reason() == ""
    run = one.start()
    assert "training" in jobs.busy_reason()
    one.until(run, lambda live: live["step"] > 0)
    one.post(f"/runs/{run}/commands", {"do": "stop_now"})
    one.until(run, lambda live: live["state"] != "running")
    assert jobs.busy_reason() == ""


def test_the_webuis_model_leaves_the_card_before_a_run_and_it_is_shown(site):
    one = site("--standin-card", "8", FAKE_PACE="0.02")
    assert one.webui.shared.sd_model is not None
    run = one.start()
    card = one.live(run)["card"]
    assert card["before_gb"] < card["after_gb"] <= 8
    assert one.webui.sd_models.model_data.sd_model is None


def test_a_trainer_that_refuses_is_a_400_with_its_reason_and_no_run(site):
    one = site(FAKE_DIES="input")
    answer = one.post("/runs", {"form": FORM})
    assert answer.status_code == 400
    assert answer.json()["error"]["remedy"] == "check the path"
    listed = one.get("/runs").json()
    assert listed["runs"] == [] and listed["active"] == ""
    assert "there is no such file" in listed["failed_start"]["text"]


def test_a_trainer_that_dies_before_its_run_is_shown_with_its_reason(site):
    answer = site(FAKE_DIES="memory").post("/runs", {"form": FORM})
    assert answer.status_code == 503
    assert "memory" in answer.json()["error"]["text"]


def test_a_killed_trainer_is_shown_as_such(site):
    one = site(FAKE_PACE="0.05")
    run = one.start()
    os.kill(one.services.jobs.jobs(1)[0].pid, signal.SIGKILL)
    found = one.until(run, lambda live: live["state"] != "running", patience=3)
    assert found["state"] == "interrupted"
    assert found["error"]["text"] and found["error"]["remedy"]


def test_after_a_restart_of_the_webui_the_run_is_found(site):
    one = site(FAKE_PACE="0.05")
    run = one.start()
    one.until(run, lambda live: live["step"] > 2)
    services = importlib.import_module("dreambooth.host.services")
    services.services.cache_clear()
    app = FastAPI()
    importlib.import_module("dreambooth.host.routes").add_to(app)
    with TestClient(app) as again:
        assert again.get(PREFIX + "/page").json()["active"] == run
        found = again.get(f"{PREFIX}/runs/{run}/live").json()
        assert found["state"] == "running" and found["chart"]["steps"][:2] == [1, 2]
        assert again.post(PREFIX + "/runs", json={"form": FORM}).status_code == 409


def test_an_export_is_listed_by_itself(site):
    one = site(FAKE_PACE="0.05")
    one.services.follower._every = 0.02
    run = one.start(export_steps=3)
    one.until(run, lambda live: live["exports"])
    deadline = time.monotonic() + 10
    while "dog-3.safetensors" not in (m["name"] for m in one.get("/models").json()["checkpoints"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def whole_export(one: Site, run: str, name: str = "dog-9.safetensors") -> Path:
    """A result that is a real, tiny checkpoint, with its event."""
    path = one.webui.checkpoint(Path(name).stem, b"trained")
    line = {"time": 1, "event": "exported", "step": 9, "path": str(path)}
    line["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with (one.webui.data / "dreambooth" / "runs" / run / "events.jsonl").open("a") as events:
        events.write(json.dumps(line) + "\n")
    return path


def finished(one: Site) -> str:
    run = one.start(max_train_steps=2)
    one.until(run, lambda live: live["state"] == "finished")
    return run


def test_a_result_is_used(site):
    one = site()
    run = finished(one)
    path = whole_export(one, run)
    found = one.post(f"/runs/{run}/use", {"path": str(path)}).json()
    assert found["name"] == "dog-9.safetensors"
    assert found["prompt"] == "photo of ohwx dog"
    assert not found["loaded"]
    assert one.post(f"/runs/{run}/use", {"path": str(path), "load": True}).json()["loaded"]
    assert one.webui.sd_models.model_data.sd_model.sd_checkpoint_info.name == "dog-9.safetensors"


def test_a_run_of_another_version_is_used_with_its_prompt_all_the_same(site):
    one = site()
    run = finished(one)
    path = whole_export(one, run)
    config = one.webui.data / "dreambooth" / "runs" / run / "config.yaml"
    config.write_text(config.read_text() + "a_setting_of_tomorrow: 3\n")
    assert one.post(f"/runs/{run}/use", {"path": str(path)}).json()["prompt"] == "photo of ohwx dog"
    config.write_text("concepts: 7\n")
    assert one.post(f"/runs/{run}/use", {"path": str(path)}).json()["prompt"] == ""


def finished_adapter(one: Site, base: Path, **about: str) -> tuple[str, str]:
    """A run of an adapter on `base`, whose file says `about` of itself, and this file."""
    run = finished(one)
    path = whole_export(one, run)
    lora = importlib.import_module("dreambooth.host.webui").lora_dir() / "dog.safetensors"
    header = {"__metadata__": about, "weight": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    lora.parent.mkdir(parents=True, exist_ok=True)
    lora.write_bytes(len(text).to_bytes(8, "little") + text + b"lora")
    folder = one.webui.data / "dreambooth" / "runs" / run
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    told = (folder / "events.jsonl").read_text().replace(str(path), str(lora))
    (folder / "events.jsonl").write_text(told.replace(before, hashlib.sha256(lora.read_bytes()).hexdigest()))
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump({**yaml.safe_load(config.read_text()), "model": str(base), "resolution": 64})
    )
    one.services.watcher.forget(RunFolder(folder))
    return run, str(lora)


def test_an_adapter_is_used_by_the_prompt_on_its_base(site):
    one = site()
    base = one.webui.checkpoint("small")
    run, lora = finished_adapter(one, base)
    found = one.post(f"/runs/{run}/use", {"path": lora}).json()
    assert (found["load_with"], found["prompt"]) == ("prompt", "photo of ohwx dog <lora:dog:1>")
    assert (found["path"], found["base"], found["loaded"]) == (str(base), "small.safetensors", False)
    assert found["title"].startswith("small.safetensors") and found["selected"] == "base.safetensors"
    assert found["resolution"] == 64
    assert one.post(f"/runs/{run}/use", {"path": lora, "load": True}).json()["loaded"]
    assert one.webui.sd_models.model_data.sd_model.sd_checkpoint_info.name == "small.safetensors"


def test_the_base_of_an_adapter_is_also_known_by_its_bytes(site, tmp_path):
    one = site()
    moved = one.webui.checkpoint("moved", b"base")
    sha256 = hashlib.sha256(moved.read_bytes()).hexdigest()
    run, lora = finished_adapter(one, tmp_path / "gone.safetensors", **{"dreambooth.base_sha256": sha256})
    one.webui.sd_models.list_models()
    listed = [info for info in one.webui.sd_models.checkpoints_list.values() if info.filename == str(moved)]
    listed[0].calculate_shorthash()
    found = one.post(f"/runs/{run}/use", {"path": lora}).json()
    assert (found["base"], found["path"]) == ("moved.safetensors", str(moved))


def test_an_adapter_whose_base_is_not_listed_says_so(site, tmp_path):
    one = site()
    run, lora = finished_adapter(one, tmp_path / "gone.safetensors")
    found = one.post(f"/runs/{run}/use", {"path": lora}).json()
    assert (found["title"], found["base"]) == ("", "gone.safetensors")
    answer = one.post(f"/runs/{run}/use", {"path": lora, "load": True})
    assert answer.status_code == 400 and "made on gone.safetensors" in answer.json()["error"]["text"]


def test_only_a_whole_export_of_the_run_itself_is_used(site):
    one = site()
    run = finished(one)
    path = whole_export(one, run)
    other = one.webui.checkpoint("other")
    assert one.post(f"/runs/{run}/use", {"path": str(other)}).status_code == 404
    path.write_bytes(path.read_bytes().replace(b"trained", b"changed"))
    answer = one.post(f"/runs/{run}/use", {"path": str(path)})
    assert answer.status_code == 400 and "changed" in answer.json()["error"]["text"]
    path.unlink()
    assert one.post(f"/runs/{run}/use", {"path": str(path)}).status_code == 404


def test_a_run_is_deleted_and_its_result_stays(site):
    one = site()
    run = finished(one)
    result = Path(one.live(run)["result"]["path"])
    assert one.client.delete(f"{PREFIX}/runs/{run}").status_code == 200
    assert one.get("/runs").json()["runs"] == []
    assert list((one.webui.data / "dreambooth" / "runs").iterdir()) == []
    assert result.exists()


def test_the_name_that_a_deleted_run_had_claimed_is_left_without_a_trace(site):
    one = site()
    run = finished(one)
    models = Path(one.live(run)["result"]["path"]).parent
    runs = one.webui.data / "dreambooth" / "runs"
    own, other = models / "dog.claimed-by-a-run", models / "cat.claimed-by-a-run"
    own.write_text(json.dumps({"run": str(runs / run)}))
    other.write_text(json.dumps({"run": str(runs / "cat")}))
    assert one.client.delete(f"{PREFIX}/runs/{run}").status_code == 200
    assert not own.exists() and other.exists()


def test_a_run_that_is_alive_is_not_deleted(site):
    one = site(FAKE_PACE="0.05")
    run = one.start()
    assert one.client.delete(f"{PREFIX}/runs/{run}").status_code == 409
    assert one.live(run)["state"] == "running"


# paths

NAMES = [
    "..", "%2e%2e", "..%2f..", "..%5c..", "%2fetc", "C:", "C%3a%5cx", "CON", "nul.txt", ".hidden", "x" * 300, "a%00b",
    "%E7%85%A7%E7%89%87", "%5c%5cserver%5cshare", "dog%20",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_name_leads_nowhere_else(site, name):
    one = site()
    data = one.webui.data
    (data / "dreambooth" / "runs").mkdir(parents=True)
    for place in (data, data / "dreambooth"):
        (place / "config.yaml").write_text("resolution: 64\n")
    for method, path in (
        ("GET", ""), ("GET", "/live"), ("GET", "/events"), ("GET", "/form"), ("DELETE", ""), ("POST", "/resume"),
        ("GET", "/samples/a.png"),
    ):  # fmt: skip
        answer = one.client.request(method, f"{PREFIX}/runs/{name}{path}")
        assert answer.status_code in (404, 405), (method, path, answer.text)
    assert (data / "config.yaml").exists() and (data / "dreambooth" / "config.yaml").exists()


@pytest.mark.parametrize(
    "file", [*NAMES[1:], "..%2fconfig.yaml", "..%2f..%2f..%2fconfig.json", "link.png", "a.svg"]
)
def test_a_samples_name_leads_nowhere_else(site, file):
    one = site()
    run = finished(one)
    folder = one.webui.data / "dreambooth" / "runs" / run
    (one.webui.data / "secret.png").write_bytes(picture())
    (folder / "samples" / "link.png").symlink_to(one.webui.data / "secret.png")
    (folder / "samples" / "a.svg").write_text("<svg onload='alert(1)'/>")
    assert one.get(f"/runs/{run}/samples/{file}").status_code == 404


def test_a_run_that_is_a_link_is_none(site, tmp_path):
    one = site()
    run = finished(one)
    runs = one.webui.data / "dreambooth" / "runs"
    (runs / run).rename(tmp_path / "elsewhere")
    (runs / run).symlink_to(tmp_path / "elsewhere")
    assert one.client.delete(f"{PREFIX}/runs/{run}").status_code == 404
    assert (tmp_path / "elsewhere" / "config.yaml").exists()


@pytest.mark.parametrize("flag", ["--hide-ui-dir-config", "--listen"])
def test_where_paths_may_not_be_chosen_no_call_reads_outside_our_folders(site, flag, tmp_path):
    one = site(flag)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(picture())
    (tmp_path / "x.yaml").write_text("resolution: 64\n")
    calls_out = [
        ("/photos/look", {"path": str(tmp_path / "mine")}),
        ("/photos/look", {"path": "../../mine"}),
        ("/photos/copy", {"path": str(tmp_path / "mine")}),
        ("/open", {"kind": "path", "path": str(tmp_path / "x.yaml")}),
        ("/plan", {"form": {"model": str(tmp_path / "m.safetensors")}}),
        ("/plan", {"form": {"concepts": [{"instance_data_dir": str(tmp_path / "mine")}]}}),
        ("/runs", {"form": {"output_dir": str(tmp_path)}}),
    ]
    for path, body in calls_out:
        assert one.post(path, body).status_code == 403, (path, body)


def test_where_paths_may_be_chosen_folders_are_looked_at(site, tmp_path):
    one = site()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(picture((40, 30)))
    found = one.post("/photos/look", {"path": str(tmp_path / "mine")}).json()
    assert [(file["name"], file["width"]) for file in found["files"]] == [("a.png", 40)]
    assert not found["own"]
    small = one.get("/photos/thumbnail", params={"id": found["files"][0]["thumbnail"]})
    assert small.headers["content-type"] == "image/jpeg"
    assert one.post("/photos/remove", {"path": str(tmp_path / "mine"), "name": "a.png"}).status_code == 400
    for path in ("//server/share", "\\\\server\\share", "/dev", "/proc/self", "", "http://x/"):
        assert one.post("/photos/look", {"path": path}).status_code == 400, path
    assert one.get("/photos/thumbnail", params={"id": "../../x"}).status_code == 404


def upload(one: Site, *files: tuple[str, bytes], folder: str = "") -> Any:
    sent = [("files", (name, content)) for name, content in files]
    return one.client.post(PREFIX + "/photos", data={"folder": folder}, files=sent)


def test_photos_are_taken_in(site):
    one = site()
    answer = upload(one, ("../../a.png", picture()), ("../../a.txt", b"a dog"), ("bomb.png", bomb()))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert Path(found["path"]).parent == one.webui.data / "dreambooth" / "photos"
    assert [one_["name"] for one_ in found["refused"]] == ["bomb.png"]
    again = upload(one, ("b.png", picture(colour="blue")), folder=found["folder"]).json()
    assert again["path"] == found["path"]
    looked = one.post("/photos/look", {"path": found["path"]}).json()
    assert looked["count"] == 2 and looked["own"]
    assert "a dog" in [file["caption"] for file in looked["files"]]
    for file in looked["files"]:
        assert one.post("/photos/remove", {"path": found["path"], "name": file["name"]}).status_code == 200
    assert one.post("/photos/look", {"path": found["path"]}).json()["count"] == 0


@pytest.mark.parametrize("folder", ["..", "../x", "/x", "a/b", "C:x", "CON", "x" * 300])
def test_photos_are_never_kept_elsewhere(site, folder):
    one = site()
    before = sorted(one.webui.data.rglob("*"))
    assert upload(one, ("a.png", picture()), folder=folder).status_code == 400
    assert sorted(one.webui.data.rglob("*")) == before


def test_an_upload_without_an_end_in_sight_is_refused_before_it_is_read(site):
    one = site()
    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(1 << 40)}
    assert one.client.post(PREFIX + "/photos", content=b"x", headers=headers).status_code == 400


def test_a_mistake_of_ours_is_answered_in_the_same_shape(site, monkeypatch):
    one = site()
    routes = importlib.import_module("dreambooth.host.routes")
    monkeypatch.setattr(routes, "schema", lambda: 1 / 0)
    answer = one.get("/schema")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]["text"]
