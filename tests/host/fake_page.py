"""The page's scripts in a browser with answers that a test gives: no WebUI, no trainer, nothing on the network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from dreambooth.host import fields, tab
from dreambooth.shared.presets import as_json

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://webui.test/"
PREFIX = "dreambooth-trainer/v1/"


def _model(name: str, *, on: bool) -> dict[str, Any]:
    return {
        "title": f"{name}.safetensors [11]",
        "name": name,
        "path": f"/models/{name}.safetensors",
        "selected": on,
        "loaded": on,
    }


MODELS = [_model("other", on=False), _model("base", on=True)]
PLAN = {
    "images": 3, "class_images": 0, "class_images_to_make": 200, "steps": 1000, "epochs": 666.7, "trained": ["UNet"],
    "files": [{"path": "/models/base-1.safetensors", "size": 2_000_000_000, "what": "the trained checkpoint"}],
    "disk_needed": 9e9, "disk_free": 1e11, "memory": {"weights_gb": 4.0}, "device": "CPU", "mixed_precision": "no",
    "notes": [], "expected_seconds": 1260, "expected_by": "no earlier run had like settings",
    "output": "/models/base-1.safetensors", "concepts": [],
}  # fmt: skip
LIVE = {
    "offset": 10, "behind": False, "state": "running", "phase": {"name": "training", "of": 100, "done": 40},
    "step": 40, "of": 100, "eta_s": 90, "it_s": 0.67, "memory_gb": 3.21, "lr": 2e-6,
    "samples": [], "exports": [], "warnings": [], "error": None,
    "log": ["line one"], "result": None, "card": None,
    "chart": {"steps": [10, 20, 30, 40], "loss": [0.4, 0.3, 0.5, 0.2], "smooth": [0.4, 0.35, 0.36, 0.3],
              "instance": [0.3, 0.2, 0.4, 0.1], "prior": [0.1, 0.1, 0.1, 0.1]},
}  # fmt: skip
_PICTURE = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8" fill="teal"/></svg>'


@dataclass
class Installed:
    state: str = "ready"
    text: str = ""
    remedy: str = ""


@dataclass
class FakeWebUI:
    """`answers` by method and path, a value or a function of the request's body; `asked` is what the page sent."""

    page: Any
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    form: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    active: str = ""
    installation: dict[str, Any] = field(
        default_factory=lambda: {"state": "ready", "text": "", "remedy": "", "log": []}
    )
    flags: dict[str, Any] = field(default_factory=lambda: {"paths_may_be_chosen": True})
    localization: dict[str, str] = field(default_factory=dict)
    root: str = ""
    away: bool = False

    def open(self) -> FakeWebUI:
        self.page.route(f"{ADDRESS}**/*", self._answer)
        self.page.goto(ADDRESS + self.root.strip("/") + ("/" if self.root else ""))
        self.page.wait_for_selector("#dbt_train, .dbt-problem", state="attached")
        return self

    def sent(self, route: str) -> list[Any]:
        """The bodies of all requests to a route, the newest last."""
        return [body for name, body in self.asked if name == route]

    def until_sent(self, route: str, times: int) -> list[Any]:
        """The bodies of all requests to a route, once there are as many: what a click asks for comes after it."""
        self.until(lambda: len(self.sent(route)) >= times, f"{route} is asked {times} times")
        return self.sent(route)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits for what the page's requests bring about."""
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, f"it did not come to this: {what}; asked: {self.asked}"
            self.page.wait_for_timeout(20)

    def _answer(self, route: Any, request: Any) -> None:
        path = unquote(urlparse(request.url).path).removeprefix(self.root)
        if path == "/":
            route.fulfill(body=self._html(), content_type="text/html; charset=utf-8")
        elif path.startswith("/file="):
            route.fulfill(path=ROOT / path.removeprefix("/file="))
        elif path.endswith((".png", ".jpg")) or "thumbnail" in path:
            route.fulfill(body=_PICTURE, content_type="image/svg+xml")
        elif self.away:
            route.abort()
        else:
            self._api(route, request, path.removeprefix("/" + PREFIX))

    def _api(self, route: Any, request: Any, path: str) -> None:
        name = f"{request.method} {path}"
        is_json = (request.headers.get("content-type") or "").startswith("application/json")
        body = json.loads(request.post_data) if is_json and request.post_data else None
        self.asked.append((name, body))
        found = self.answers.get(name, self._usual().get(name))
        if name == "GET active" and name not in self.answers:
            found = self._active()
        found = found(body) if callable(found) else found
        if found is None:
            found = (404, {"error": {"text": f"nothing answers {name}", "where": "", "remedy": ""}})
        status, content = found if isinstance(found, tuple) else (200, found)
        route.fulfill(status=status, body=json.dumps(content), content_type="application/json")

    def _active(self) -> Any:
        """What the list of runs says, in short."""
        runs = self.answers.get("GET runs", {"active": self.active})
        if not isinstance(runs, dict):
            return runs
        names = ",".join(run["name"] for run in runs.get("runs", []))
        return {
            "active": runs["active"], "starting": bool(runs.get("starting")), "runs": names, "listed": 1
        }  # fmt: skip

    def _usual(self) -> dict[str, Any]:
        return {
            "GET page": {
                "version": "1", "installation": self.installation, "groups": fields.groups(),
                "concept_fields": fields.concept_fields(), "presets": as_json(), "checkpoints": MODELS, "vaes": [],
                "flags": self.flags, "options": {}, "form": self.form, "kept": self.kept,
                "active": self.active,
                "listed": 1,
                "places": {"runs": "/data/runs", "checkpoints": "/models", "photos": "/data/photos"},
            },
            "GET installation": self.installation,
            "GET models": {"checkpoints": MODELS, "vaes": []},
            "GET models/inspect": {"family": "Stable Diffusion 1.x", "prediction_type": "epsilon", "size": 24e6},
            "GET runs": {"runs": [], "active": self.active, "starting": None, "failed_start": None},
            "POST plan": PLAN, "POST form": {},
            "POST photos": {"folder": "set-1", "path": "/data/photos/set-1", "files": [], "refused": []},
            "POST photos/look": lambda body: {
                "path": body["path"], "count": 1, "files": [{"name": "a.jpg", "thumbnail": "t1"}], "problems": []
            },
        }  # fmt: skip

    def _html(self) -> str:
        scripts = "".join(
            f'<script src="{self.root}/file=javascript/{path.name}"></script>'
            for path in sorted((ROOT / "javascript").glob("*.js"))
        )
        state = Installed(self.installation["state"], self.installation["text"], self.installation["remedy"])
        return f"""<!doctype html><link rel="stylesheet" href="{self.root}/file=style.css">
<script>
  window.localization = {json.dumps(self.localization)};
  window.gradio_config = {{root: {json.dumps(self.root)}}};
  window.gradioApp = () => document;
  window.onUiLoaded = (act) => document.addEventListener("DOMContentLoaded", act);
  window.selectCheckpoint = (title) => {{ window.chosen = title; }};
  window.switch_to_txt2img = () => {{ window.switched = true; }};
</script>{scripts}
<div id="txt2img_prompt"><textarea></textarea></div>
<div class="prose">{tab.root_html(lambda: state)}</div>"""
