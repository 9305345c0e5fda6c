"""The same places under the name that most extensions use."""

from modules.paths_internal import (  # noqa: F401
    data_path,
    extensions_dir,
    models_path,
    script_path,
)
