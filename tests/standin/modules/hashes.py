"""Hashes of files, remembered until the file is newer: an older file put in its place keeps the stale hash."""

import hashlib
import os

from modules.shared_cmd_options import cmd_opts

_known = {}


def sha256_from_cache(filename, title):
    mtime, digest = _known.get(title, (None, None))
    return digest if mtime is not None and os.path.getmtime(filename) <= mtime else None


def sha256(filename, title):
    known = sha256_from_cache(filename, title)
    if known or cmd_opts.no_hashing:
        return known
    digest = file_sha256(filename)
    _known[title] = (os.path.getmtime(filename), digest)
    return digest


def file_sha256(filename):
    with open(filename, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
