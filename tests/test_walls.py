"""The import walls between host, trainer, shared and what runs on a bare Python, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dreambooth"
# What runs before there is an environment, and whatever of ours they may lean on.
BARE = (
    *("__main__", "detached", "environment", "installing", "lean", "making", "overlay", "pins", "pipfailure"),
    *("allocator", "torchbuild"),
)
BARE_SHARED = ("shared.errors", "shared.lock")


class Import(NamedTuple):
    module: str
    line: int
    at_top: bool


def _imports(path: Path) -> list[Import]:
    """Every module that a file imports; `from a import b` counts as `a` and as `a.b`. TYPE_CHECKING is left out."""
    found: list[Import] = []

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _whole_name(node, path)
            found.append(Import(module, node.lineno, at_top))
            found.extend(Import(f"{module}.{alias.name}", node.lineno, at_top) for alias in node.names)
        inside = at_top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def _whole_name(node: ast.ImportFrom, path: Path) -> str:
    """The module that `from … import` names, a relative one too, as it is called on the command line."""
    if not node.level:
        return str(node.module)
    package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
    return ".".join((*package, node.module) if node.module else package)


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _breaches(paths: list[Path], forbidden: tuple[str, ...], *, only_at_top: bool = False) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for path in paths
        for found in _imports(path)
        if _is_in(found.module, forbidden) and (found.at_top or not only_at_top)
    ]


def _files(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).rglob("*.py"))


def test_every_folder_that_has_a_wall_is_found():
    assert _files("shared") and _files("trainer")
    assert all((PACKAGE / f"{name.replace('.', '/')}.py").exists() for name in BARE + BARE_SHARED)


@pytest.mark.parametrize("name", BARE)
def test_what_runs_on_a_bare_python_imports_only_the_standard_library(name: str):
    ours = tuple(f"dreambooth.{other}" for other in BARE + BARE_SHARED)
    allowed = (*ours, "dreambooth.shared") if name != "__main__" else (*ours, "dreambooth.cli")
    packages = ("dreambooth", "dreambooth.shared")  # named by `from dreambooth import pins`
    wrong = [
        f"line {found.line}: {found.module}"
        for found in _imports(PACKAGE / f"{name}.py")
        if not _is_standard(found.module)
        and found.module not in packages
        and not _is_in(found.module, allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", BARE_SHARED)
def test_what_a_bare_python_takes_from_shared_imports_only_the_standard_library(name: str):
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    assert [found for found in _imports(path) if not _is_standard(found.module)] == []


def test_what_the_webui_loads_names_its_neighbours_relatively():
    """The WebUI loads this package under a name of its own, since an older extension has a folder `dreambooth`."""
    paths = [PACKAGE / f"{name}.py" for name in BARE if name != "__main__"]
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (*paths, *_files("shared"), *_files("host"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and _is_in(str(node.module), ("dreambooth",)))
        or (isinstance(node, ast.Import) and any(_is_in(one.name, ("dreambooth",)) for one in node.names))
    ]
    assert wrong == []


def test_install_py_imports_only_the_standard_library_and_what_runs_bare():
    path = ROOT / "install.py"
    allowed = tuple(f"dreambooth.{name}" for name in BARE + BARE_SHARED)
    found = _imports(path) if path.exists() else []
    wrong = [
        one
        for one in found
        if not _is_standard(one.module) and not _is_in(one.module, ("dreambooth", *allowed))
    ]
    assert wrong == []


def test_shared_imports_only_the_standard_library_omegaconf_and_itself():
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for path in _files("shared")
        for found in _imports(path)
        if not _is_standard(found.module)
        and not _is_in(found.module, ("omegaconf", "yaml", "dreambooth.shared"))
        and found.module not in ("dreambooth", "dreambooth.__version__")
    ]
    assert wrong == []


def test_the_trainer_never_imports_the_webui_or_what_draws_its_page():
    assert _breaches(_files("trainer"), ("gradio", "modules", "dreambooth.host")) == []


def test_the_host_never_imports_the_trainer_or_its_libraries():
    heavy = ("diffusers", "transformers", "accelerate", "peft", "dreambooth.trainer", "dreambooth.cli")
    assert _breaches(_files("host"), heavy) == []


def test_only_two_files_know_the_webuis_own_modules():
    known = {PACKAGE / "host" / "webui.py", PACKAGE / "host" / "guarding.py"}
    paths = [path for path in PACKAGE.rglob("*.py") if path not in known]
    assert _breaches(paths, ("modules",)) == []


def test_heavy_libraries_are_imported_from_their_exact_submodules():
    """`from diffusers import X` walks through a lazy module whose look-ups cost a start some tenths of a second."""
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}"
        for path in _files("trainer")
        for found in _imports(path)
        if found.module in ("diffusers", "transformers") and found.at_top
    ]
    assert wrong == []


def test_the_command_line_can_be_read_by_a_python_without_any_library():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import dreambooth.cli\n"
        "for command in ('train', 'runs', 'doctor'):\n"
        "    try: dreambooth.cli.parse([command, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
    )
    bare = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]  # -S: no site-packages
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_start_in_the_environment_imports_no_heavy_library_before_the_command():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import dreambooth.cli, dreambooth.environment\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'accelerate', 'omegaconf', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
