"""The routes of runs: start, watch, command, use, delete."""

from __future__ import annotations

import contextlib
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.responses import FileResponse

from ..shared.claims import release_all
from ..shared.config import read_mapping
from ..shared.errors import DreamboothError, InputError
from ..shared.paths import file_name_problem
from ..shared.runfolder import COMMANDS, RunFolder, is_run
from . import forms, opening, using, webui
from .answers import Conflict, Json, NotFound
from .endings import tail
from .extension import PREFIX
from .folders import is_inside
from .photo_routes import speaking_of_photos
from .schemas import (
    ActiveAnswer,
    CommandBody,
    EventsAnswer,
    FormAnswer,
    FormBody,
    IdAnswer,
    LiveAnswer,
    RunAnswer,
    RunsAnswer,
    UseAnswer,
    UseBody,
)
from .services import Services, check_environment, places, take_card
from .watch import read_page

_PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


def readable(name: str) -> RunFolder:
    """The run of that name. Raises NotFound; a name that would lead elsewhere is the name of none."""
    path = webui.runs_dir() / name
    if file_name_problem(name) or path.is_symlink() or not is_run(path):
        raise NotFound("there is no such run", where="run", remedy="look at the list of runs")
    return RunFolder(path)


def add_run_routes(router: APIRouter, shared: Services) -> None:
    """Adds the routes of this module."""
    _add_start_routes(router, shared)
    _add_watch_routes(router, shared)
    _add_act_routes(router, shared)


def _add_start_routes(router: APIRouter, shared: Services) -> None:
    @router.post("/runs", summary="Starts a training", responses={200: {"model": RunAnswer}})
    def start(body: FormBody) -> Any:
        config = forms.to_yaml(forms.complete(body.form, places()))
        check_environment()
        with speaking_of_photos(shared):
            run = shared.jobs.start(config, take_card())
        shared.follower.begin(run)
        return {"run": run.name if run is not None else ""}

    @router.post("/runs/{run}/resume", summary="Goes on with a run", responses={200: {"model": RunAnswer}})
    def resume(run: str) -> Any:
        folder = readable(run)
        check_environment()
        shared.jobs.resume(folder, take_card())
        shared.follower.begin(folder)
        return {"run": run}

    @router.post("/runs/cancel-start", summary="Ends a trainer that has no run yet")
    def cancel_start() -> Any:
        return {"cancelled": shared.jobs.cancel_start()}

    @router.get(
        "/active",
        summary="What has the card, and whether runs or checkpoints are others than before, tiny",
        responses={200: {"model": ActiveAnswer}},
    )
    def active() -> Any:
        return Json(_active(shared), headers={"Cache-Control": "no-store"})

    @router.get("/runs", summary="All runs, the newest first", responses={200: {"model": RunsAnswer}})
    def runs() -> Any:
        return _runs(shared)


def _add_watch_routes(router: APIRouter, shared: Services) -> None:
    @router.get("/runs/{run}", summary="A run with its plan, phases, samples and results")
    def summary(run: str) -> Any:
        folder = readable(run)
        return {**shared.watcher.summary(folder, url=_picture_url(run)), "card": _card(shared, folder)}

    @router.get(
        "/runs/{run}/live",
        summary="What has come of a run so far, small",
        responses={200: {"model": LiveAnswer}},
    )
    def live(run: str, since: int | None = None) -> Any:
        folder = readable(run)
        found = shared.watcher.live(folder, since=since, url=_picture_url(run))
        found["log"] = (
            shared.photos.in_users_words("\n".join(found["log"])).split("\n") if found["log"] else []
        )
        return Json({**found, "card": _card(shared, folder)}, headers={"Cache-Control": "no-store"})

    @router.get(
        "/runs/{run}/events",
        summary="A run's events from an offset",
        responses={200: {"model": EventsAnswer}},
    )
    def events(run: str, offset: int = 0, limit: int = 500) -> Any:
        return Json(read_page(readable(run), max(0, offset), min(max(1, limit), 2000)))

    @router.get("/runs/{run}/form", summary="A run's settings", responses={200: {"model": FormAnswer}})
    def form(run: str) -> Any:
        opened = opening.open_run(readable(run))
        return {"form": forms.left_open(opened.form, places()), "not_taken": opened.not_taken}

    @router.get("/runs/{run}/samples/{file}", summary="A sample picture", response_class=FileResponse)
    def sample(run: str, file: str) -> Any:
        folder = readable(run)
        path = folder.samples / file
        kind = _PICTURES.get(path.suffix.lower())
        problem = file_name_problem(file)
        if problem or kind is None or not path.is_file() or not is_inside(path, [folder.samples]):
            raise NotFound("there is no such picture", where="file", remedy="look at the run again")
        return FileResponse(path, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})


def _add_act_routes(router: APIRouter, shared: Services) -> None:
    @router.post(
        "/runs/{run}/commands", summary="Tells a run what to do", responses={200: {"model": IdAnswer}}
    )
    def command(run: str, body: CommandBody) -> Any:
        folder = readable(run)
        if body.do not in COMMANDS:
            raise InputError(f"`do` cannot be {body.do[:40]!r}", where="do", remedy=", ".join(COMMANDS))
        if folder.is_alive():
            told = folder.order(body.do)
            shared.watcher.ordered(folder, told, body.do)
            return {"id": told}
        if body.do.startswith("stop") and shared.jobs.end_start(folder):
            return {"id": ""}
        if shared.jobs.is_starting(folder):
            raise Conflict("this run is just starting", where="run", remedy="try again in a moment")
        raise Conflict("this run is not running", where="run", remedy="resume it first")

    @router.post(
        "/runs/{run}/use",
        summary="Makes the WebUI list an export of a run, and loads it (an adapter's base) where `load` says so",
        responses={200: {"model": UseAnswer}},
    )
    def use(run: str, body: UseBody) -> Any:
        return using.use(shared, readable(run), body)

    @router.delete("/runs/{run}", summary="Deletes a run's folder; what it exported elsewhere stays")
    def delete(run: str) -> Any:
        _delete(shared, readable(run))
        return {"deleted": run}


def _picture_url(run: str) -> Any:
    return lambda file: f"{PREFIX}/runs/{quote(run, safe='')}/samples/{quote(file, safe='')}"


def _card(shared: Services, run: RunFolder) -> dict[str, Any] | None:
    job = shared.jobs.job_of(run)
    if job is None or job.card is None:
        return None
    return {"before_gb": job.card.before_gb, "after_gb": job.card.after_gb}


def _active(shared: Services) -> dict[str, Any]:
    """What every open page asks every few seconds: no run is read for it."""
    active = shared.jobs.active()
    try:
        stamp = str(webui.runs_dir().stat().st_mtime_ns)  # as text: JavaScript would round the number
    except OSError:
        stamp = ""
    return {
        "active": active.run.name if active is not None and active.run is not None else "",
        "starting": active is not None and active.run is None,
        "runs": stamp,
        "listed": webui.times_listed(),
    }


def _runs(shared: Services) -> dict[str, Any]:
    active = shared.jobs.active()
    living = active.run.path if active is not None and active.run is not None else None
    starting = None
    if active is not None and active.run is None:
        job = active.job
        starting = {"since": job.started if job else 0.0, "log": tail(job.log, 10) if job else []}
    return {
        "runs": shared.listing.rows(webui.runs_dir(), living),
        "active": living.name if living is not None else "",
        "starting": starting,
        "failed_start": _failed_start(shared) if active is None else None,
    }


def _failed_start(shared: Services) -> dict[str, Any] | None:
    failed = shared.jobs.failed_start()
    if failed is None:
        return None
    job, ending = failed
    return {"since": job.started, "text": ending.text, "remedy": ending.remedy, "log": tail(job.log, 20)}


def _results_folder(run: RunFolder) -> Path | None:
    """Where a run's results go, None for one whose settings cannot be read any more."""
    with contextlib.suppress(DreamboothError):
        told = read_mapping(run.config).get("output_dir")
        return Path(str(told)) if told else None
    return None


def _delete(shared: Services, run: RunFolder) -> None:
    """Renames the folder out of sight first, so that no half deleted run is ever listed."""
    if run.is_alive() or shared.jobs.is_starting(run):
        raise Conflict("this run is running", where="run", remedy="stop it first")
    results = _results_folder(run)
    aside = run.path.with_name(f".{run.name}.{uuid.uuid4().hex[:8]}.deleted")
    try:
        # where an open file may be renamed, a trainer that starts now is kept out; where not, it keeps us out
        with run.hold() if sys.platform != "win32" else contextlib.nullcontext():
            run.path.rename(aside)
    except InputError as error:
        raise Conflict(error.what, where="run", remedy="stop it first") from error
    except OSError as error:
        raise DreamboothError(
            f"the folder cannot be removed ({error.strerror})", where=str(run.path),
            remedy="close programs that have it open, or change its permissions",
        ) from error  # fmt: skip
    shared.watcher.forget(run)
    if results is not None:
        release_all(results, run.path)
    for left in run.path.parent.glob(".*.deleted"):  # also what a program had open at an earlier time
        shutil.rmtree(left, ignore_errors=True)
