"""VAEs. A file whose name begins with a checkpoint's stem is used with it, and says so nowhere but in the log."""

import glob
import os

from modules import paths, shared

vae_path = os.path.abspath(os.path.join(paths.models_path, "VAE"))
vae_dict = {}
base_vae = None
loaded_vae_file = None
checkpoint_info = None


def refresh_vae_list():
    from modules import sd_models

    vae_dict.clear()
    places = [(sd_models.model_path, ".vae.safetensors"), (vae_path, ".safetensors"), (vae_path, ".pt")]
    if shared.cmd_opts.vae_dir:
        places.append((shared.cmd_opts.vae_dir, ".safetensors"))
    found = [path for folder, end in places for path in glob.glob(f"{folder}/**/*{end}", recursive=True)]
    vae_dict.update({os.path.basename(path): path for path in sorted(found, key=os.path.basename)})


def find_vae_near_checkpoint(checkpoint_file):
    stem = os.path.basename(checkpoint_file).rsplit(".", 1)[0]
    return next((path for path in vae_dict.values() if os.path.basename(path).startswith(stem)), None)


def delete_base_vae():
    global base_vae, checkpoint_info  # noqa: PLW0603
    base_vae = checkpoint_info = None


def reload_vae_weights(sd_model=None, vae_file=None):
    """Puts the VAE that belongs to the model into it. Fails without a model, as the WebUI's does."""
    global loaded_vae_file, base_vae, checkpoint_info
    model = sd_model or shared.sd_model
    info = model.sd_checkpoint_info
    chosen = vae_dict.get(shared.opts.sd_vae) or (
        find_vae_near_checkpoint(info.filename) if shared.opts.sd_vae == "Automatic" else None
    )
    base_vae, checkpoint_info, loaded_vae_file = "base", info, vae_file or chosen
    return model
