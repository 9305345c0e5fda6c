"""What everybody shares. `sd_model` is a property: to look at it may load a model."""

import sys
import threading

from modules import options, paths_internal
from modules.options import OptionHTML, OptionInfo, options_section  # noqa: F401
from modules.paths_internal import data_path, models_path, script_path  # noqa: F401
from modules.shared_cmd_options import cmd_opts, parser  # noqa: F401


class State:
    """What the WebUI does now, and what its buttons asked for."""

    def __init__(self):
        self.job, self.job_count, self.interrupted, self.skipped = "", 0, False, False
        self.server_command = None
        self._asked = threading.Event()

    def begin(self, job="(unknown)"):
        self.job, self.job_count, self.interrupted = job, 1, False

    def end(self):
        self.job, self.job_count = "", 0

    def interrupt(self):
        self.interrupted = True

    def request_restart(self):
        self.interrupt()
        self.server_command = "restart"
        self._asked.set()

    def wait_for_server_command(self, timeout=None):
        if not self._asked.wait(timeout):
            return None
        self._asked.clear()
        asked, self.server_command = self.server_command, None
        return asked


def _checkpoint_choices():
    from modules import sd_models

    return {"choices": sd_models.checkpoint_tiles()}


def _list_checkpoints():
    from modules import sd_models

    sd_models.list_models()


def _vae_choices():
    from modules import sd_vae

    return {"choices": ["Automatic", "None", *sd_vae.vae_dict]}


def _dropdown(**kwargs):
    import gradio

    return gradio.Dropdown(**kwargs)


state = State()
demo = None
config_filename = cmd_opts.ui_settings_file
hide_dirs = {"visible": not cmd_opts.hide_ui_dir_config}
restricted_opts = {"outdir_samples"}
opts = options.Options(
    options_section(
        ("sd", "Stable Diffusion"),
        {
            "sd_model_checkpoint": OptionInfo(
                None, "Stable Diffusion checkpoint", _dropdown, _checkpoint_choices, refresh=_list_checkpoints
            ),
            "sd_vae": OptionInfo("Automatic", "SD VAE", _dropdown, _vae_choices),
            "sd_checkpoint_hash": OptionInfo("", "SHA256 hash of the current checkpoint"),
            "localization": OptionInfo("None", "Localization"),
        },
    ),
    restricted_opts,
)
opts.load(config_filename)
extensions_dir = paths_internal.extensions_dir


def __getattr__(name):
    if name != "interrogator":
        raise AttributeError(name)
    from modules import interrogate

    globals()[name] = interrogate.InterrogateModels()
    return globals()[name]


class _Shared(sys.modules[__name__].__class__):
    @property
    def sd_model(self):
        from modules import sd_models

        return sd_models.model_data.get_sd_model()


sys.modules[__name__].__class__ = _Shared
