"""The routes of photos: taking them in, looking at folders, thumbnails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import Response

from ..shared.errors import DreamboothError, InputError
from . import forms, uploads
from .schemas import FolderBody, LookAnswer, PhotoBody, PhotosAnswer
from .services import Services, places
from .thumbnails import MOST_BYTES
from .uploads import Incoming, Stored

MOST_AT_ONCE = 4 << 30
_MULTIPART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "folder": {"type": "string", "description": "the name of a set; empty for a new one"},
                    },
                }
            }
        },
    }
}


def add_photo_routes(router: APIRouter, shared: Services) -> None:
    """Adds the routes of this module."""

    @router.post(
        "/photos",
        summary="Takes photos, and captions of the same names, into a set",
        responses={200: {"model": PhotosAnswer}},
        openapi_extra=_MULTIPART,
    )
    async def take(request: Request) -> Any:
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_AT_ONCE:
            raise InputError("too much at once", where="files", remedy="send fewer photos at a time")
        form = await request.form()
        try:
            name = form.get("folder") or ""
            files = [one for one in form.getlist("files") if isinstance(one, UploadFile)]
            return await run_in_threadpool(_take, shared, files, name if isinstance(name, str) else "")
        finally:
            await form.close()

    @router.post(
        "/photos/copy",
        summary="A new set with copies of a folder's photos and captions",
        responses={200: {"model": PhotosAnswer}},
    )
    def copy(body: FolderBody) -> Any:
        return _answer(shared, shared.photos.copy_of(forms.folder_to_read(body.path, places())))

    @router.post("/photos/look", summary="The photos of a folder", responses={200: {"model": LookAnswer}})
    def look(body: FolderBody) -> Any:
        folder = forms.folder_to_read(body.path, places())
        return {**uploads.look(folder, shared.thumbnails.name), "own": shared.photos.is_own(folder)}

    @router.get("/photos/thumbnail", summary="A small picture of a photo", response_class=Response)
    def thumbnail(id: str) -> Any:
        headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
        return Response(shared.thumbnails.picture(id), media_type="image/jpeg", headers=headers)

    @router.post("/photos/remove", summary="Removes a photo that was dropped into the page")
    def remove(body: PhotoBody) -> Any:
        shared.photos.remove(forms.folder_to_read(body.path, places()), body.name)
        return {"removed": body.name}


@contextlib.contextmanager
def speaking_of_photos(shared: Services) -> Iterator[None]:
    """Errors from within name photos as their owner did, not as they are kept."""
    try:
        yield
    except DreamboothError as error:
        error.what = shared.photos.in_users_words(error.what)
        for problem in error.more.get("problems", []):
            problem["text"] = shared.photos.in_users_words(problem["text"])
        raise


def _take(shared: Services, files: list[UploadFile], set_name: str) -> dict[str, Any]:
    """Reads one file after the other: all of them together may be more than the memory."""
    incoming = (Incoming(one.filename or "", one.file.read(MOST_BYTES + 1)) for one in files)
    return _answer(shared, shared.photos.store(incoming, set_name))


def _answer(shared: Services, stored: Stored) -> dict[str, Any]:
    return {
        "folder": stored.folder.name,
        "path": str(stored.folder),
        "files": [{"name": path.name, "thumbnail": shared.thumbnails.name(path)} for path in stored.files],
        "refused": stored.refused,
    }
