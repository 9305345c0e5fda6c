"""Settings: their values, their rows in the page, and what the command line forbids of them."""

import json

from modules import errors
from modules.shared_cmd_options import cmd_opts


class OptionInfo:
    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None,
        refresh=None, comment_before="", comment_after="", infotext=None, restrict_api=False, category_id=None,
    ):  # fmt: skip
        self.default, self.label, self.component, self.component_args = (
            default,
            label,
            component,
            component_args,
        )
        self.onchange, self.section, self.refresh, self.category_id = onchange, section, refresh, category_id
        self.comment_before, self.comment_after = comment_before, comment_after
        self.infotext, self.restrict_api, self.do_not_save = infotext, restrict_api, False

    def info(self, text):
        self.comment_after += f"<span class='info'>({text})</span>"
        return self

    def html(self, text):
        self.comment_after += text
        return self

    def link(self, label, url):
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def needs_restart(self):
        return self.html(" <span class='info'>(requires restart)</span>")

    def needs_reload_ui(self):
        return self.html(" <span class='info'>(requires Reload UI)</span>")


class OptionHTML(OptionInfo):
    def __init__(self, text):
        super().__init__(str(text).strip())
        self.do_not_save = True


def options_section(section_identifier, options_dict):
    for info in options_dict.values():
        info.section = section_identifier[:2]
    return options_dict


def _listed(text):
    return [one.strip() for one in text.split(",")] if text is not None else []


class Options:
    """Values by attribute. Setting one by attribute runs no `onchange`; `set` does, and takes back what fails."""

    _own = ("data_labels", "data", "restricted_opts")

    def __init__(self, data_labels, restricted_opts):
        self.data_labels, self.restricted_opts = data_labels, restricted_opts
        self.data = {key: info.default for key, info in data_labels.items() if not info.do_not_save}

    def __setattr__(self, key, value):
        if key in self._own or key not in self.data_labels:
            return super().__setattr__(key, value)
        assert not cmd_opts.freeze_settings, "changing settings is disabled"
        section = self.data_labels[key].section or (None, None)
        assert section[0] not in _listed(cmd_opts.freeze_settings_in_sections), f"{key} is frozen"
        assert key not in _listed(cmd_opts.freeze_specific_settings), f"{key} is frozen"
        if cmd_opts.hide_ui_dir_config and key in self.restricted_opts:
            raise RuntimeError(
                f"not possible to set {key} because it is restricted with --hide_ui_dir_config"
            )
        if not self.data_labels[key].do_not_save:
            self.data[key] = value

    def __getattr__(self, key):
        if key not in self._own:
            if key in self.data:
                return self.data[key]
            if key in self.data_labels:
                return self.data_labels[key].default
        raise AttributeError(key)

    def set(self, key, value, is_api=False, run_callbacks=True):
        old = self.data.get(key)
        info = self.data_labels[key]
        if old == value or info.do_not_save or (is_api and info.restrict_api):
            return False
        try:
            setattr(self, key, value)
        except RuntimeError:
            return False
        if run_callbacks and info.onchange is not None:
            try:
                info.onchange()
            except Exception as error:
                errors.display(error, f"changing setting {key} to {value}")
                setattr(self, key, old)
                return False
        return True

    def onchange(self, key, func, call=True):
        self.data_labels[key].onchange = func
        if call:
            func()

    def add_option(self, key, info):
        self.data_labels[key] = info
        if key not in self.data and not info.do_not_save:
            self.data[key] = info.default

    def save(self, filename):
        assert not cmd_opts.freeze_settings, "saving settings is disabled"
        with open(filename, "w", encoding="utf8") as file:
            json.dump(self.data, file, indent=4, ensure_ascii=False)

    def load(self, filename):
        try:
            with open(filename, encoding="utf8") as file:
                self.data.update(json.load(file))
        except FileNotFoundError:
            return

    def dumpjson(self):
        return json.dumps({key: self.data.get(key, info.default) for key, info in self.data_labels.items()})
