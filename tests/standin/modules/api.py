"""`--api`: pictures and the list of checkpoints, behind `--api-auth`, which protects nothing else."""

import base64
import io
import secrets

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from modules import processing, sd_models
from modules.call_queue import queue_lock
from modules.shared_cmd_options import cmd_opts


def _allowed(given: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008
    pairs = dict(one.split(":", 1) for one in cmd_opts.api_auth.split(","))
    if not secrets.compare_digest(given.password, pairs.get(given.username, secrets.token_hex())):
        raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})


def _txt2img(body: dict):
    p = processing.StableDiffusionProcessing(body.get("prompt", ""))
    with queue_lock:
        done = processing.process_images(p)
    buffer = io.BytesIO()
    done.images[0].save(buffer, "PNG")
    return {"images": [base64.b64encode(buffer.getvalue()).decode()], "info": done.info}


def _models():
    return [
        {"title": info.title, "model_name": info.model_name, "filename": info.filename}
        for info in sd_models.checkpoints_list.values()
    ]


def create_api(app):
    protected = [Depends(_allowed)] if cmd_opts.api_auth else []
    app.add_api_route("/sdapi/v1/txt2img", _txt2img, methods=["POST"], dependencies=protected)
    app.add_api_route("/sdapi/v1/sd-models", _models, methods=["GET"], dependencies=protected)
