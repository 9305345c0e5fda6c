"""What the WebUI runs at its start and at "Reload UI": loads our package by its path, under a name of its own (the old
extension has a folder `dreambooth` too), and registers it. Where that fails, the tab says why."""

import html
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

NAME = "dreambooth_trainer"
FOLDER = Path(__file__).resolve().parent.parent / "dreambooth"


def _extension() -> ModuleType:
    if NAME not in sys.modules:
        places = [str(FOLDER)]
        spec = importlib.util.spec_from_file_location(
            NAME, FOLDER / "__init__.py", submodule_search_locations=places
        )
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.host.extension")


def _explain(told: str) -> list:
    import gradio

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML(f"<p>The DreamBooth extension could not be loaded:</p><pre>{html.escape(told)}</pre>")
    return [(blocks, "DreamBooth", NAME)]


try:
    _extension().register()
except Exception:  # noqa: BLE001 -- whatever it is, the tab says it
    _told = traceback.format_exc()
    print(f"DreamBooth could not be loaded:\n{_told}", file=sys.stderr)
    for _name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[_name]  # so that "Reload UI" tries again
    from modules import script_callbacks

    script_callbacks.on_ui_tabs(lambda: _explain(_told))
