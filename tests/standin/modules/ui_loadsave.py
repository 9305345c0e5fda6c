"""ui-config.json: defaults kept by `<tab>/<label>`, so that two components of one label in a tab share theirs."""

import json
import os

from modules.shared_cmd_options import cmd_opts

_KEPT = ("textbox", "slider", "checkbox", "dropdown", "number", "radio", "checkboxgroup", "accordion")


class UiLoadsave:
    def __init__(self):
        self._path = cmd_opts.ui_config_file
        self.settings = {}
        if os.path.exists(self._path):
            with open(self._path, encoding="utf8") as file:
                self.settings = json.load(file)

    def add_block(self, block, path):
        """Every component below `block`: an old default is put into it, a new one is kept."""
        for child in getattr(block, "children", ()):
            label = getattr(child, "label", None)
            wanted = label and child.get_block_name() in _KEPT
            if wanted and not getattr(child, "do_not_save_to_config", False):
                key = f"{path}/{label}/value"
                if key in self.settings and hasattr(child, "value"):
                    child.value = self.settings[key]
                self.settings[key] = getattr(child, "value", None)
            self.add_block(child, path)

    def dump(self):
        with open(self._path, "w", encoding="utf8") as file:
            json.dump(self.settings, file, indent=4, ensure_ascii=False)
