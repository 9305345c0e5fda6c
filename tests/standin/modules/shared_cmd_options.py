"""The command line, extensions' own flags (preload.py) included."""

import argparse
import os

from modules import paths_internal, script_loading

parser = argparse.ArgumentParser()
for flag in (
    *("api", "nowebui", "listen", "medvram", "lowvram", "no-hashing", "hide-ui-dir-config"),
    *("disable-extension-access", "freeze-settings", "skip-load-model-at-start", "skip-install"),
    *("enable-insecure-extension-access", "no-gradio-queue"),
):
    parser.add_argument(f"--{flag}", action="store_true")
for flag in (
    *(
        "ckpt-dir",
        "vae-dir",
        "lora-dir",
        "api-auth",
        "gradio-auth",
        "device-id",
        "server-name",
        "subpath",
        "theme",
    ),
    *("freeze-settings-in-sections", "freeze-specific-settings", "cors-allow-origins"),
    *("cors-allow-origins-regex", "models-dir"),
):
    parser.add_argument(f"--{flag}")
parser.add_argument("--data-dir", default=paths_internal.script_path)
parser.add_argument("--port", type=int)
parser.add_argument("--gradio-allowed-path", action="append", default=[paths_internal.data_path])
parser.add_argument("--use-cpu", nargs="+", default=[], type=str.lower)
parser.add_argument(
    "--standin-card", type=float, default=0, help="GB of a card that this machine does not have"
)
script_loading.preload_extensions(paths_internal.extensions_dir, parser)
cmd_opts = parser.parse_known_args()[0]
cmd_opts.ui_settings_file = os.path.join(paths_internal.data_path, "config.json")
cmd_opts.ui_config_file = os.path.join(paths_internal.data_path, "ui-config.json")
cmd_opts.webui_is_non_local = bool(cmd_opts.listen or cmd_opts.server_name)
cmd_opts.disable_extension_access = (
    cmd_opts.webui_is_non_local and not cmd_opts.enable_insecure_extension_access
) or cmd_opts.disable_extension_access
