"""Checkpoints: the list, and what is in memory, with what goes wrong in the WebUI going wrong here too."""

import glob
import json
import os
import re
import sys
import threading

from modules import devices, errors, hashes, lowvram, paths, script_callbacks, sd_vae, shared

model_path = os.path.abspath(os.path.join(paths.models_path, "Stable-diffusion"))
checkpoints_list = {}
checkpoint_aliases = {}


class CheckpointInfo:
    """A listed file. `title` carries the hash once it is known, so a file with new content has a new title."""

    def __init__(self, filename):
        self.filename = filename
        self.name = os.path.basename(filename)
        for folder in (shared.cmd_opts.ckpt_dir, model_path):
            if folder and os.path.abspath(filename).startswith(os.path.abspath(folder)):
                self.name = os.path.relpath(filename, folder)
                break
        self.name_for_extra = os.path.splitext(self.name)[0]
        self.model_name = self.name_for_extra.replace(os.sep, "_")
        self.metadata = _metadata(filename)
        self.sha256 = hashes.sha256_from_cache(filename, f"checkpoint/{self.name}")
        self._entitle()

    def _entitle(self):
        self.shorthash = self.sha256[:10] if self.sha256 else None
        self.title = f"{self.name} [{self.shorthash}]" if self.shorthash else self.name
        self.short_title = (
            f"{self.name_for_extra} [{self.shorthash}]" if self.shorthash else self.name_for_extra
        )
        self.ids = [self.model_name, self.title, self.name, self.name_for_extra]
        self.ids += [self.shorthash, self.sha256] if self.shorthash else []

    def register(self):
        checkpoints_list[self.title] = self
        checkpoint_aliases.update(dict.fromkeys(self.ids, self))

    def calculate_shorthash(self):
        """Also renames the entry in the list, keeping its place."""
        self.sha256 = hashes.sha256(self.filename, f"checkpoint/{self.name}")
        if self.sha256 and self.shorthash != self.sha256[:10]:
            old = self.title
            self._entitle()
            entries = [
                (self.title if title == old else title, info) for title, info in checkpoints_list.items()
            ]
            checkpoints_list.clear()
            checkpoints_list.update(entries)
            self.register()
        return self.shorthash


def _metadata(filename):
    try:
        with open(filename, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length)).get("__metadata__", {}) if length < 1 << 26 else {}
    except (OSError, ValueError, AttributeError):
        return {}


def list_models():
    """Lists the folders afresh. Titles that were known by an old content are known no more."""
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    folders = [model_path, *([shared.cmd_opts.ckpt_dir] if shared.cmd_opts.ckpt_dir else [])]
    ends = (".safetensors", ".ckpt")
    for folder in folders:
        for path in sorted(glob.glob(f"{folder}/**/*", recursive=True)):
            if path.endswith(ends) and not re.search(r"\.vae\.[a-z]+$", path):
                CheckpointInfo(path).register()


def checkpoint_tiles(use_short=False):
    return [info.short_title if use_short else info.title for info in checkpoints_list.values()]


def get_closet_checkpoint_match(text):
    if text in checkpoint_aliases:
        return checkpoint_aliases[text]
    bare = re.sub(r"\s*\[[^]]+]\s*$", "", text or "")
    found = sorted(
        (info for info in checkpoints_list.values() if bare in info.title), key=lambda i: len(i.title)
    )
    return found[0] if found and bare else None


def select_checkpoint():
    """The selected one; where its title is known no more, silently the first of the list."""
    wanted = shared.opts.sd_model_checkpoint
    if wanted in checkpoint_aliases:
        return checkpoint_aliases[wanted]
    if not checkpoints_list:
        raise FileNotFoundError("No checkpoints found.")
    first = next(iter(checkpoints_list.values()))
    if wanted is not None:
        print(f"Checkpoint {wanted} not found; loading fallback {first.title}", file=sys.stderr)
    return first


class Model:
    """What is in memory: where it is, whose bytes it holds, and whether it is attached."""

    size_gb = 2.0

    def __init__(self, info, used_config):
        self.sd_checkpoint_info, self.used_config = info, used_config
        self.sd_model_checkpoint = info.filename
        self.device, self.hijacked, self.lowvram, self.content = devices.cpu, False, False, ""

    def to(self, device):
        if self.device == devices.meta and device != devices.meta:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        self._count(-1)
        self.device = device
        self._count(1)
        return self

    def _count(self, sign):
        if self.device.type == "cuda":
            devices.card.used_gb += sign * self.size_gb


class SdModelData:
    def __init__(self):
        self.sd_model, self.loaded_sd_models = None, []
        self.was_loaded_at_least_once, self.lock = False, threading.Lock()

    def get_sd_model(self):
        """Loads the first model of a session; later, None stays None until a generation loads one."""
        if self.was_loaded_at_least_once:
            return self.sd_model
        with self.lock:
            if self.sd_model is None and not self.was_loaded_at_least_once:
                try:
                    load_model()
                except Exception as error:
                    errors.display(error, "loading stable diffusion model")
                    self.sd_model = None
        return self.sd_model

    def set_sd_model(self, model):
        self.sd_model = model
        if model in self.loaded_sd_models:
            self.loaded_sd_models.remove(model)
        self.loaded_sd_models.insert(0, model)


model_data = SdModelData()


def send_model_to_cpu(model):
    if model.lowvram:
        lowvram.send_everything_to_cpu()
    else:
        model.to(device=devices.cpu)


def send_model_to_device(model):
    lowvram.apply(model)
    model.to(device=devices.device)
    if model.lowvram:
        lowvram.note_on_card(model)


def send_model_to_trash(model):
    model.to(device=devices.meta)


def unload_model_weights(sd_model=None, info=None):
    """Only moves to the CPU, and nothing moves it back."""
    send_model_to_cpu(sd_model or shared.sd_model)


def load_model(checkpoint_info=None, already_loaded_state_dict=None):
    """Makes a new model. One that is in memory goes to nowhere but stays listed: a later reload meets it."""
    info = checkpoint_info or select_checkpoint()
    if model_data.sd_model is not None:
        send_model_to_trash(model_data.sd_model)
        model_data.sd_model = None
    state = already_loaded_state_dict or _read(info)
    model = Model(info, _config(info))
    _load_weights(model, info, state)
    send_model_to_device(model)
    model.hijacked = True
    model_data.set_sd_model(model)
    model_data.was_loaded_at_least_once = True
    script_callbacks.run("model_loaded", model)
    return model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    """Loads the selected checkpoint, or `info`, into the model in memory. A file that cannot be read leaves the old
    model on the CPU and detached."""
    info = info or select_checkpoint()
    model = sd_model or model_data.sd_model
    if model is not None and model.sd_model_checkpoint == info.filename and not forced_reload:
        return model
    if model_data.loaded_sd_models:
        model = model_data.sd_model = model_data.loaded_sd_models.pop()
    if model is not None:
        send_model_to_cpu(model)
        model.hijacked = False
    state = _read(info)
    if model is None or model.used_config != _config(info):
        if model is not None:
            send_model_to_trash(model)
        return load_model(info, already_loaded_state_dict=state)
    _load_weights(model, info, state)
    model.hijacked = True
    send_model_to_device(model)
    script_callbacks.run("model_loaded", model)
    model_data.set_sd_model(model)
    return model


def _config(info):
    beside = os.path.splitext(info.filename)[0] + ".yaml"
    return beside if os.path.exists(beside) else "v1-inference.yaml"


def _read(info):
    with open(info.filename, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 1 << 26)))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != os.path.getsize(info.filename):
        raise RuntimeError("Error while deserializing header: MetadataIncompleteBuffer")
    return hashes.file_sha256(info.filename)


def _load_weights(model, info, state):
    info.calculate_shorthash()
    model.content, model.sd_checkpoint_info, model.sd_model_checkpoint = state, info, info.filename
    shared.opts.data["sd_model_checkpoint"] = info.title
    shared.opts.data["sd_checkpoint_hash"] = info.sha256
    sd_vae.delete_base_vae()
    sd_vae.reload_vae_weights(model)
