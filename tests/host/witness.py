"""An extension of the WebUI that says what became of a checkpoint, since the WebUI passes over missing tensors in silence.

Whenever a model is loaded, `witness/NAME.json` in the data folder gets the model's tensors that the file has not, the
file's that the model has not, and those whose values are not the file's. It also gives open_clip the sizes in its folder
`open_clip`, under the names of their files.
"""

import json
from pathlib import Path

import open_clip
import safetensors.torch
from modules import paths, script_callbacks, scripts

open_clip.add_model_config(Path(scripts.basedir()) / "open_clip")


def say(model):
    path = Path(model.sd_checkpoint_info.filename)
    file = safetensors.torch.load_file(path)
    held = {name.replace(".wrapped", ""): tensor for name, tensor in model.state_dict().items()}
    if hasattr(model, "conditioner"):  # the WebUI gives it the other's name too
        held = {name: tensor for name, tensor in held.items() if not name.startswith("cond_stage_model.")}
    said = {
        "missing": sorted(held.keys() - file.keys()),
        "left": sorted(file.keys() - held.keys()),
        "other": sorted(
            name
            for name in held.keys() & file.keys()
            if held[name].shape != file[name].shape or not held[name].cpu().float().equal(file[name].float())
        ),
        "tensors": len(held.keys() & file.keys()),
        "parameterization": model.parameterization,
    }
    folder = Path(paths.data_path) / "witness"
    folder.mkdir(exist_ok=True)
    (folder / f"{path.stem}.json").write_text(json.dumps(said), encoding="utf-8")


script_callbacks.on_model_loaded(say)
