"""The REST routes, all below one prefix and behind one check. Writes are POST or DELETE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.concurrency import run_in_threadpool

from .. import __version__
from ..shared.catalog import schema
from ..shared.errors import InputError
from ..shared.presets import as_json as presets
from ..shared.settings import ADAPTERS
from . import fields, forms, installation, opening, webui
from .answers import Guarded, Json, caller
from .extension import PREFIX
from .folders import is_inside
from .forms import Form
from .photo_routes import add_photo_routes, speaking_of_photos
from .run_routes import add_run_routes, readable
from .schemas import (
    ErrorAnswer,
    FormAnswer,
    FormBody,
    InstallationAnswer,
    KeptBody,
    OpenBody,
    PlanBody,
    SaveAnswer,
)
from .services import Services, check_environment, places, services


def add_to(app: FastAPI) -> None:
    """Adds the routes to the WebUI's app, and goes on following a run that an earlier WebUI started."""
    shared = services()
    app.include_router(router(shared))
    shared.follower.begin()


def router(shared: Services) -> APIRouter:
    """All routes over the given services."""
    made = APIRouter(
        prefix=PREFIX,
        route_class=Guarded,
        default_response_class=Json,
        tags=["DreamBooth"],
        responses={400: {"model": ErrorAnswer, "description": "What is wrong, where, and what to do"}},
    )
    _add_page_routes(made, shared)
    _add_form_routes(made, shared)
    add_run_routes(made, shared)
    add_photo_routes(made, shared)
    return made


def _add_page_routes(router: APIRouter, shared: Services) -> None:
    @router.get("/page", summary="All that the tab is drawn from")
    def page() -> Any:
        return _page(shared)

    @router.get("/schema", summary="The settings: names, kinds, defaults, ranges, helps")
    def settings_schema() -> Any:
        return {"settings": schema(), "concept": fields.concept_fields()}

    @router.get(
        "/installation", summary="The trainer's environment", responses={200: {"model": InstallationAnswer}}
    )
    def look_at_installation() -> Any:
        return dataclasses.asdict(installation.state())

    @router.post(
        "/installation/make",
        summary="Makes the trainer's environment where it is missing",
        responses={200: {"model": InstallationAnswer}},
    )
    def make_installation() -> Any:
        installation.start()
        return dataclasses.asdict(installation.state())

    @router.get("/models", summary="The WebUI's checkpoints and VAEs")
    def models() -> Any:
        return _models()

    @router.post(
        "/models/small-base",
        summary="Puts the small checkpoint that comes with the extension among the WebUI's",
    )
    def place_small_base() -> Any:
        check_environment()
        placed = shared.planner.place_base(webui.checkpoints_dir())
        webui.list_in_turn()
        return {"path": str(placed), **_models()}

    @router.get("/models/inspect", summary="What a model file of the WebUI's is")
    def inspect(path: str) -> Any:
        listed = next((one for one in [*webui.checkpoints(), *webui.vaes()] if one.path == path), None)
        if listed is None:
            raise InputError(
                "the WebUI does not list this file", where="path", remedy="take one from /models"
            )
        check_environment()
        return {**shared.planner.inspect(Path(listed.path)), "title": listed.title}


def _add_form_routes(router: APIRouter, shared: Services) -> None:
    @router.post("/plan", summary="What a training would do, and what is wrong with it; nothing is written")
    async def plan(body: PlanBody, request: Request) -> Any:
        async with caller(request) as gone:
            return await run_in_threadpool(_planned, shared, body, gone.is_set)

    @router.post(
        "/open", summary="A file or an earlier run as a form", responses={200: {"model": FormAnswer}}
    )
    def open_file(body: OpenBody) -> Any:
        opened = _opened(body)
        return {"form": forms.left_open(opened.form, places()), "not_taken": opened.not_taken}

    @router.post(
        "/save",
        summary="The form as YAML, as `train` takes it, with the folders that the WebUI fills in",
        responses={200: {"model": SaveAnswer}},
    )
    def save(body: FormBody) -> Any:
        text = forms.to_yaml(
            forms.complete(body.form, places())
        )  # on the command line too it does what the tab does
        return {"yaml": text, "name": f"{forms.name_of(body.form)}.yaml"}

    @router.post("/form", summary="Remembers the form, right or wrong")
    def remember(body: KeptBody) -> Any:
        shared.last_form.save(forms.Kept(body.form, body.preset, tuple(body.typed), body.family))
        return {}


def _planned(shared: Services, body: PlanBody, is_gone: Callable[[], bool]) -> dict[str, Any]:
    config = forms.to_yaml(forms.complete(body.form, places()))
    check_environment()
    with speaking_of_photos(shared):
        found = shared.planner.plan(config, body.page, is_gone)
    notes = [shared.photos.in_users_words(str(note)) for note in found.get("notes", [])]
    return {**found, "notes": [*notes, *_warnings(body.form, found)]}


def _page(shared: Services) -> dict[str, Any]:
    listed = webui.times_listed()  # before the models, of which some may come meanwhile
    active = shared.jobs.active()
    kept = shared.last_form.load() or forms.Kept(_newcomers_form())
    return {
        "version": __version__,
        "installation": dataclasses.asdict(installation.state()),
        "groups": fields.groups(),
        "concept_fields": fields.concept_fields(),
        "presets": presets(),
        **_models(),
        "flags": {
            **dataclasses.asdict(webui.flags()),
            "paths_may_be_chosen": webui.flags().paths_may_be_chosen,
        },
        "options": dataclasses.asdict(webui.options()),
        "form": kept.form,
        "kept": {"preset": kept.preset, "typed": list(kept.typed), "family": kept.family},
        "active": active.run.name if active is not None and active.run is not None else "",
        "listed": listed,
        "places": {
            "runs": str(webui.runs_dir()),
            "checkpoints": str(webui.checkpoints_dir()),
            "photos": str(webui.photos_dir()),
        },
    }


def _models() -> dict[str, Any]:
    failures, failure = webui.failed_loads()
    return {
        "checkpoints": [dataclasses.asdict(model) for model in webui.checkpoints()],
        "vaes": [dataclasses.asdict(model) for model in webui.vaes()],
        "failures": failures,
        "failure": failure,
    }


def _newcomers_form() -> Form:
    selected = webui.selected_checkpoint()
    return {**({"model": selected.path} if selected is not None else {}), "concepts": [{}]}


def _opened(body: OpenBody) -> opening.Opened:
    needed = {"file": "content", "path": "path", "run": "run"}.get(body.kind, "kind")
    if not getattr(body, needed).strip():
        raise InputError(
            f"`{needed}` is missing or empty: kind {body.kind!r} needs it", where=needed,
            remedy="file needs `content`, path needs `path`, run needs `run`",
        )  # fmt: skip
    if body.kind == "run":
        return opening.open_run(readable(body.run))
    if body.kind == "file":
        return opening.open_content(body.content, body.name)
    if body.kind == "path":
        return opening.open_path(forms.file_to_read(body.path, places()))
    raise InputError(f"`kind` cannot be {body.kind[:40]!r}", where="kind", remedy="file, path or run")


def _warnings(form: Form, plan: dict[str, Any]) -> list[str]:
    """What only the WebUI's side knows of a plan."""
    output = Path(str(plan.get("output", "")))
    name, notes = output.stem, []
    taken = webui.vae_that_takes(name) if name else ""
    if taken:
        notes.append(
            f"The WebUI would use the VAE {taken} with the result, because its file name begins with {name}: "
            "choose another name for the result, if that is not meant."
        )
    if name and _is_unlisted(output.parent, str(form.get("output_kind") or "checkpoint")):
        notes.append(
            f"The WebUI does not look into the folder {output.parent}: leave output_dir empty, if it is to use the result."
        )
    return notes


def _is_unlisted(folder: Path, kind: str) -> bool:
    """Whether a result of this `output_kind` is one that the WebUI lists, and would not list there. It follows links."""
    if kind == "diffusers":
        return False
    listed = webui.listed_folders(adapters=kind in ADAPTERS)
    return not is_inside(folder, listed) and not any(folder.is_relative_to(one) for one in listed)
