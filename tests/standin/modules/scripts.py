"""Runs extensions' scripts: their folder is on sys.path only while the script's body runs."""

import os
import sys

from modules import errors, extensions, paths_internal, script_loading

_base = paths_internal.script_path


def basedir():
    """The folder of the extension whose script runs now."""
    return _base


def list_scripts(folder, end):
    """Files of that ending in that folder of each extension."""
    return [
        (extension, os.path.join(extension, folder, name))
        for extension in extensions.folders()
        for name in sorted(_names(os.path.join(extension, folder)))
        if name.endswith(end)
    ]


def _names(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []


def load_scripts():
    global _base  # noqa: PLW0603
    before = sys.path
    for extension, path in list_scripts("scripts", ".py"):
        try:
            sys.path = [extension, *before]
            _base = extension
            script_loading.load_module(path)
        except Exception:
            errors.report(f"Error loading script: {path}", exc_info=True)
        finally:
            sys.path = before
            _base = paths_internal.script_path
