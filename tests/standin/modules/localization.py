"""The page's language: every extension's file of that name, merged."""

import json

from modules import scripts


def localization_js(name):
    texts = {}
    for _, path in scripts.list_scripts("localizations", f"{name}.json"):
        with open(path, encoding="utf8") as file:
            texts.update(json.load(file))
    return f"window.localization = {json.dumps(texts)}"
