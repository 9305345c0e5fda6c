"""Where everything lies; read from the command line before anything else, as `--data-dir` moves all of it."""

import argparse
import os
import shlex
import sys

sys.argv += shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))

script_path = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_early = argparse.ArgumentParser(add_help=False)
_early.add_argument("--data-dir", default=script_path)
_early.add_argument("--models-dir")
cmd_opts_pre = _early.parse_known_args()[0]

data_path = cmd_opts_pre.data_dir
models_path = cmd_opts_pre.models_dir or os.path.join(data_path, "models")
extensions_dir = os.path.join(data_path, "extensions")
