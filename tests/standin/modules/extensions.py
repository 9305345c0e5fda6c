"""The folders of extensions."""

import os

from modules import paths_internal


def folders():
    place = paths_internal.extensions_dir
    found = sorted(os.listdir(place)) if os.path.isdir(place) else []
    return [os.path.join(place, name) for name in found if os.path.isdir(os.path.join(place, name))]
