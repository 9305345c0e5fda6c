"""What our routes take and give, for checking what comes in and for the WebUI's /docs.

Written so that it means the same to pydantic 1 (AUTOMATIC1111's WebUI) and 2.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class FormBody(BaseModel):
    form: dict[str, Any] = Field(
        ..., description="setting names and values, and `concepts`; what is not named is the default"
    )


class KeptBody(FormBody):
    preset: str = Field("", max_length=64, description="the preset that the form was filled in by")
    typed: list[str] = Field([], description="the settings that somebody wrote by hand")
    family: str = Field("", max_length=64, description="the family of its model, where it is known")


class PlanBody(FormBody):
    page: str = Field(
        "", max_length=64, description="who asks: a newer plan of the same page ends its older one (409)"
    )


class CommandBody(BaseModel):
    do: str = Field(..., description="stop, stop_now, save, export or sample")


class UseBody(BaseModel):
    path: str = Field(..., description="one of the run's exports")
    load: bool = Field(False, description="also make it the WebUI's checkpoint now")


class FolderBody(BaseModel):
    path: str = Field(..., description="a folder with photos")


class PhotoBody(BaseModel):
    path: str = Field(..., description="the folder of a set")
    name: str = Field(..., description="the photo's name in it")


class OpenBody(BaseModel):
    kind: str = Field(..., description="file (with `content`), path (with `path`) or run (with `run`)")
    content: str = Field("", description="the text of a file")
    path: str = Field("", description="a file of the WebUI's machine")
    run: str = Field("", description="the name of a run")
    name: str = Field("", description="what the file is called, to be shown")


class Problem(BaseModel):
    text: str = Field("", description="what is wrong")
    where: str = Field("", description="the setting that it is about, such as concepts[0].instance_data_dir")
    remedy: str = Field("", description="what to do")


class ErrorAnswer(BaseModel):
    error: Problem


class InstallationAnswer(BaseModel):
    state: str = Field("", description="ready, making, missing, failed or broken")
    text: str = ""
    remedy: str = ""
    log: list[str] = []


class FormAnswer(BaseModel):
    form: dict[str, Any]
    not_taken: list[str] = Field([], description="what could not be taken over, by name")


class RunAnswer(BaseModel):
    run: str = Field("", description="the run's name; empty if it is still being prepared after some minutes")


class IdAnswer(BaseModel):
    id: str = Field(
        "", description="the command is obeyed when this is among `acks` of /live; empty: it is already"
    )


class SaveAnswer(BaseModel):
    yaml: str = ""
    name: str = Field("", description="a name for the file")


class PhotosAnswer(BaseModel):
    folder: str = Field("", description="the name of the set")
    path: str = ""
    files: list[dict[str, Any]] = Field([], description="`{name, thumbnail}` each")
    refused: list[dict[str, str]] = Field([], description="`{name, why}` each")


class LookAnswer(BaseModel):
    path: str = ""
    count: int = 0
    files: list[dict[str, Any]] = Field(
        [], description="`{name, called, thumbnail, width, height, caption}` each"
    )
    problems: list[str] = []
    own: bool = Field(False, description="whether its photos may be removed here")


class EventsAnswer(BaseModel):
    events: list[dict[str, Any]] = Field([], description="as they stand in events.jsonl")
    offset: int = Field(0, description="to go on from")
    more: bool = Field(False, description="whether there are more now")


class RunSummary(BaseModel):
    name: str = ""
    kind: str = Field("", description="checkpoint, diffusers, or an adapter's: lora, dora, loha, lokr")
    state: str = Field("", description="running, finished, stopped, failed or interrupted")
    step: int = 0
    steps: int = 0
    saved: int = Field(0, description="the newest step that is saved; resume goes on from it")
    error: str = ""
    changed: float = Field(0, description="seconds since 1970")
    result: dict[str, Any] = {}


class Starting(BaseModel):
    since: float = Field(0, description="seconds since 1970")
    log: list[str] = []


class FailedStart(BaseModel):
    since: float = 0
    text: str = ""
    remedy: str = ""
    log: list[str] = []


class RunsAnswer(BaseModel):
    runs: list[RunSummary] = []
    active: str = Field("", description="the name of the run that is alive")
    starting: Starting | None = Field(None, description="a trainer that has no run yet")
    failed_start: FailedStart | None = Field(
        None, description="the last start, if it ended before it became a run"
    )


class ActiveAnswer(BaseModel):
    active: str = Field("", description="the name of the run that is alive")
    starting: bool = Field(False, description="a trainer is on its way that has no run yet")
    runs: str = Field("", description="another text once a run was made or deleted")
    listed: int = Field(0, description="another number once the WebUI listed checkpoints anew")


class LiveAnswer(BaseModel):
    offset: int = Field(0, description="give it back as `since`")
    behind: bool = Field(False, description="there is more to read: ask again at once")
    state: str = ""
    starting: bool = Field(
        False, description="of one that runs: its trainer is on its way, and the rest is of the life before"
    )
    ending: str = Field(
        "",
        description="of one that runs: stop or stop_now once it was told so, done until its process is gone",
    )
    phase: dict[str, Any] = Field({}, description="`{name, of, done}`")
    phase_eta_s: float | None = Field(
        None, description="seconds until a phase before the training is over, where its pace is known"
    )
    step: int = 0
    of: int = 0
    loss: float | None = None
    eta_s: float | None = None
    it_s: float | None = None
    memory_gb: float | None = None
    lr: float | None = None
    chart: dict[str, Any] | None = Field(
        None,
        description="`{steps, loss, smooth, instance, prior}`, at most 400 points; null if nothing came since",
    )
    saved: dict[str, Any] | None = Field(None, description="the newest state: `{step, time}`")
    samples: list[dict[str, Any]] = Field([], description="`{step, index, prompt, seed, url}` each")
    exports: list[dict[str, Any]] = Field([], description="`{step, path, name, sha256}` each")
    adapter: bool = Field(False, description="whether they are adapters, such as LoRA, and no checkpoints")
    warnings: list[str] = []
    error: Problem | None = None
    acks: list[str] = Field([], description="ids of commands that were obeyed")
    changed: float = 0
    log: list[str] = []
    card: dict[str, Any] | None = Field(
        None, description="free memory in GB before and after the WebUI's model left: `{before_gb, after_gb}`"
    )
    result: dict[str, Any] | None = None


class UseAnswer(BaseModel):
    title: str = Field(
        "", description="for selectCheckpoint: the file, or the base of an adapter; empty if not listed"
    )
    name: str = ""
    path: str = Field("", description="the file that `title` means")
    prompt: str = Field("", description="the instance prompt of the first concept")
    load_with: str = Field(
        "selectCheckpoint", description="or prompt: an adapter, which the prompt calls for"
    )
    loaded: bool = False
    failures: int = Field(0, description="how often the WebUI could not load a checkpoint so far")
    resolution: int = Field(0, description="the side in pixels that it was trained on; 0: not known")
    base: str = Field("", description="of an adapter: the checkpoint that it was made on")
    selected: str = Field("", description="of an adapter: the WebUI's checkpoint as it is now")
