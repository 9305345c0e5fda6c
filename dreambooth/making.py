"""Makes the trainer's environment: a folder with its own Python, filled by pip. Standard library only.

Safe to interrupt and to repeat: an operating-system lock, which pip inherits, keeps two starts apart even when the
first was killed; whatever has no stamp is thrown away and made anew (pip keeps its downloads); the stamp is written
last, after the libraries were imported once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import pins, torchbuild
from .environment import (
    ROOT,
    STAMP,
    Environment,
    accelerator,
    clean_environ,
    folder_for,
    python_in,
    tests_digest,
    whole,
)
from .pipfailure import explain
from .shared import lock
from .shared.errors import DreamboothError, StoppedByUser

Say = Callable[[str], None]

# What pip may know from its user's variables: where to find packages, not where or how to install them.
_PIP_MAY_KNOW = (
    *(
        "INDEX_URL",
        "EXTRA_INDEX_URL",
        "FIND_LINKS",
        "NO_INDEX",
        "TRUSTED_HOST",
        "CONFIG_FILE",
        "KEYRING_PROVIDER",
    ),
    *("PROXY", "CERT", "CLIENT_CERT", "CACHE_DIR", "NO_CACHE_DIR", "TIMEOUT", "DEFAULT_TIMEOUT", "RETRIES"),
    *("USE_FEATURE", "USE_DEPRECATED"),
)
_GIGABYTE = 1024**3
# What an environment takes at most, what pip unpacks on the way included; and about what is downloaded for it.
_SPACE = {"cpu": (3, 0.5), "cuda": (12, 3.5), "host": (2, 0.3)}

_ABILITIES = """
import importlib.util, json, sys
def version(name):
    from importlib import metadata
    return metadata.version(name) if importlib.util.find_spec(name) else ""
modules = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name)]
print(json.dumps({"modules": modules, "pip": version("pip"), "isolated": bool(sys.flags.isolated)}))
"""
_VERIFY = """
import accelerate, diffusers, numpy, omegaconf, PIL, psutil, safetensors, tokenizers, torch, transformers
import json
from importlib import metadata
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.modeling_clip import CLIPTextModel
import sys
imported = {name.partition(".")[0] for name in sys.modules}
used = {dist for module, dists in metadata.packages_distributions().items() if module in imported for dist in dists}
found = {d.metadata["Name"]: d for d in reversed(list(metadata.distributions()))}
behind = {name for name, d in found.items() if not str(d.locate_file("")).startswith(sys.prefix)} if BEHIND else ()
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
    "versions": {name: d.version for name, d in found.items()},
    "reused": {name: found[name].version for name in sorted(used.intersection(behind))},
}))
"""
_VERIFY_TESTS = "import pytest, mypy, ruff"


@dataclass(frozen=True)
class Recipe:
    """How one environment is filled: what pip is given, and the host's packages that it sees behind its own."""

    kind: str
    files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    index: str = ""
    notes: tuple[str, ...] = ()
    base_python: str = sys.executable
    behind: tuple[str, ...] = ()
    vocabulary: bool = True


class _Site(NamedTuple):
    """Where pip installs: the Python that will run, the command of a pip that fills it, the folder if it is a bare
    one without a Python of its own."""

    python: Path
    pip: tuple[str, ...]
    packages: Path | None = None


def make_plain(*, tests: bool = False, say: Say) -> Environment:
    """Makes the environment of a machine without a WebUI, torch in it; adds the tests' libraries to a whole one.

    Raises DreamboothError with what to do when it cannot be made, StoppedByUser on Ctrl-C.
    """
    kind = accelerator()
    folder = folder_for(kind)
    with alone(folder, say) as inherited:
        found = whole(folder)
        if not found:
            build = torchbuild.choose(kind)
            recipe = Recipe(
                kind=build.kind,
                files=(pins.REQUIREMENTS, *((pins.EIGHT_BIT,) if build.kind == "cuda" else ())),
                constraints=(build.constraint,) if build.constraint else (),
                index=build.address,
                notes=build.notes,
            )
            return make(folder, recipe, tests=tests, say=say, inherited=inherited)
        if tests and found.stamp.get("tests") != tests_digest():
            return _add_tests(found, say=say, inherited=inherited)
        return found


@contextlib.contextmanager
def alone(folder: Path, say: Say) -> Iterator[tuple[int, ...]]:
    """Waits until nobody else makes `folder`, and keeps others out until the block ends.

    Gives file descriptors for pip to inherit: so a pip whose parent was killed still keeps others out.
    """
    try:
        folder.parent.mkdir(exist_ok=True)
        with _locked(folder.with_name(folder.name + ".lock"), say) as inherited:
            yield inherited
    except KeyboardInterrupt:
        raise StoppedByUser("stopped; the same command makes the environment anew") from None
    except OSError as error:
        raise DreamboothError(
            f"the trainer's environment cannot be made: {error.strerror or error}",
            where=str(error.filename or folder),
            remedy="see that the project lies where you may write, on a disk with room, and repeat",
        ) from error


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[tuple[int, ...]]:
    waiting = "Another start is making the environment; waiting for it."
    if sys.platform == "win32":
        # Its locks cannot be inherited; but what a pip still uses there cannot be removed either.
        if lock.is_held(path):
            say(waiting)
        with lock.hold(path, patience=float("inf")):
            yield ()
        return
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)


def make(
    folder: Path, recipe: Recipe, *, tests: bool = False, say: Say, inherited: tuple[int, ...]
) -> Environment:
    """Makes `folder` from nothing by `recipe`. The caller holds its lock (`alone`), which gave `inherited`."""
    started = time.monotonic()
    space, download = _SPACE[recipe.kind]
    _remove(folder)
    _check_space(folder.parent, space)
    say(f"Making the trainer's environment, once; about {download} GB are downloaded: {folder}")
    for note in recipe.notes:
        say(note)
    folder.mkdir()
    run = _Runner(folder, inherited)
    site = _create_site(folder, recipe, run)
    see_behind(site.python, recipe.behind)
    files = (*recipe.files, *((pins.TESTS,) if tests else ()))
    run.pip(site, *_arguments(recipe, files, folder), doing="installing the trainer's libraries")
    if recipe.vocabulary:
        run.pip(
            site, "--no-deps", "-r", str(ROOT / pins.NO_DEPENDENCIES), doing="installing CLIP's vocabulary"
        )
    facts = _verify(site, run, recipe, tests=tests)
    run.tidy()
    stamp = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "base_python": recipe.base_python,
        "python": str(site.python),
        "packages": str(site.packages) if site.packages else None,
        "kind": recipe.kind,
        "notes": list(recipe.notes),
        "tests": tests_digest() if tests else None,
        **facts,
    }
    if recipe.kind == "cuda" and not facts["cuda"]:
        stamp["notes"].append("The package index gave a torch without CUDA: the card will not be used.")
        say(stamp["notes"][-1])
    _write_stamp(folder, stamp)
    say(f"The environment is whole after {time.monotonic() - started:.0f} s: torch {facts['torch']}.")
    _name_unused(folder, say)
    return Environment(folder, site.python, stamp)


class _Runner:
    """Runs what fills one environment, with variables that lead it nowhere else, and notes what pip says."""

    def __init__(self, folder: Path, inherited: tuple[int, ...]) -> None:
        self.folder = folder
        self.log = folder.with_name(folder.name + ".log")
        self._inherited = inherited
        self._unpacking = folder / "unpacking"
        self._unpacking.mkdir(exist_ok=True)
        allowed = {f"PIP_{name}" for name in _PIP_MAY_KNOW}
        self._environ = clean_environ(os.environ, from_host=True) | {
            **{name: value for name, value in os.environ.items() if name.upper() in allowed},
            # A user's setting `user = true` would put the libraries elsewhere.
            **{"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"},
            # pip unpacks some GB on the way; a /tmp in memory is often too small for that.
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._unpacking)),
        }
        self.log.unlink(missing_ok=True)

    def python(self, *command: str, site: _Site | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a Python; its output is captured."""
        environ = self._environ | ({"PYTHONPATH": str(site.packages)} if site and site.packages else {})
        return subprocess.run(
            command,
            env=environ,
            cwd=self.folder,
            pass_fds=self._inherited,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )

    def pip(self, site: _Site, *arguments: str, doing: str) -> None:
        """Runs pip install, its output going to stderr. Raises DreamboothError with the cause if it fails."""
        bar = () if sys.stderr.isatty() else ("--progress-bar", "off")
        command = [*site.pip, "--no-warn-script-location", "--log", str(self.log), *bar, *arguments]
        done = subprocess.run(
            command, env=self._environ, cwd=self.folder, pass_fds=self._inherited, stdout=sys.stderr.fileno()
        )
        if done.returncode:
            raise explain(self.log, doing=doing)

    def tidy(self) -> None:
        """Removes what is only needed while the environment is made."""
        shutil.rmtree(self._unpacking, ignore_errors=True)
        self.log.unlink(missing_ok=True)


def _create_site(folder: Path, recipe: Recipe, run: _Runner) -> _Site:
    """An environment by the venv module; where Python comes without it or its pip, the nearest thing that serves."""
    base = recipe.base_python
    able = json.loads(run.python(base, "-c", _ABILITIES).stdout)
    python = python_in(folder)
    if {"venv", "ensurepip"} <= set(able["modules"]):
        _create_venv(run, base, str(folder))
        return _Site(python, (str(python), "-m", "pip", "install"))
    if "venv" in able["modules"] and pins.version(able["pip"]) >= (22, 3):
        _create_venv(run, base, "--without-pip", str(folder))
        return _Site(python, (base, "-m", "pip", "--python", str(python), "install"))
    if able["pip"] and not able["isolated"] and not recipe.behind:
        packages = folder / "packages"
        return _Site(Path(base), (base, "-m", "pip", "install", "--target", str(packages)), packages)
    raise DreamboothError(
        "this Python comes without its venv module, so no environment can be made with it",
        where=base,
        remedy=_venv_remedy(),
    )


def _venv_remedy() -> str:
    if Path("/etc/debian_version").exists():
        return f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv (with sudo), and repeat"
    return "install Python 3.10 to 3.13 from https://www.python.org/downloads/ and repeat with that one"


def _create_venv(run: _Runner, base: str, *arguments: str) -> None:
    done = run.python(base, "-m", "venv", *arguments)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DreamboothError(
            f"Python's venv module failed: {said[-1] if said else f'exit code {done.returncode}'}",
            where=base,
            remedy=_venv_remedy(),
        )


def see_behind(python: Path, folders: Sequence[str]) -> None:
    """Lets the environment see a host's packages after its own. Written so that any Python reads it alike."""
    if not folders:
        return
    asking = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(asking, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    lines = [f"import site; site.addsitedir({folder!a})\n" for folder in folders]
    (Path(own) / "host-packages.pth").write_text("".join(lines), encoding="ascii")


def _arguments(recipe: Recipe, files: Sequence[str], folder: Path) -> list[str]:
    arguments = [part for name in files for part in ("-r", str(ROOT / name))]
    if recipe.constraints:
        path = folder / "constraints.txt"
        path.write_text("\n".join(recipe.constraints) + "\n", encoding="utf-8")
        arguments += ["-c", str(path)]
    if recipe.index:
        arguments += ["--extra-index-url", recipe.index]
    return [*arguments, *recipe.packages]


def _verify(site: _Site, run: _Runner, recipe: Recipe, *, tests: bool) -> dict[str, Any]:
    """Imports the libraries once; gives torch's version, its CUDA's, every package's, and what is reused of a host's."""
    code = _VERIFY.replace("BEHIND", str(bool(recipe.behind))) + (_VERIFY_TESTS if tests else "")
    done = run.python(str(site.python), "-c", code, site=site)
    try:
        facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        raise DreamboothError(
            f"the libraries were installed and cannot be imported: {said[-1] if said else 'the process was killed'}",
            where=str(run.folder),
            remedy="repeat; if it stays so, report it with this message and your system",
        ) from None
    return facts


def _add_tests(found: Environment, *, say: Say, inherited: tuple[int, ...]) -> Environment:
    """Installs the tests' libraries into a whole environment, every package that is there staying as it is."""
    say(f"Adding the tests' own libraries to {found.folder}")
    run = _Runner(found.folder, inherited)
    packages = found.stamp.get("packages")
    target = ("--target", str(packages)) if packages else ()
    site = _Site(
        found.python,
        (str(found.python), "-m", "pip", "install", *target),
        Path(str(packages)) if packages else None,
    )
    versions = found.stamp["versions"]
    ours = set(pins.read(pins.TESTS))
    recipe = Recipe(
        kind=str(found.stamp["kind"]),
        constraints=tuple(f"{name}=={version}" for name, version in versions.items() if name not in ours),
    )
    run.pip(site, *_arguments(recipe, (pins.TESTS,), found.folder), doing="installing the tests' libraries")
    facts = _verify(site, run, recipe, tests=True)
    run.tidy()
    stamp = found.stamp | facts | {"tests": tests_digest()}
    _write_stamp(found.folder, stamp)
    return found._replace(stamp=stamp)


def _write_stamp(folder: Path, stamp: dict[str, Any]) -> None:
    temporary = folder / (STAMP + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / STAMP)


def _remove(folder: Path) -> None:
    """Removes what is left of an earlier making. The stamp goes first: nothing half removed may look whole."""
    (folder / STAMP).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _check_space(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free / _GIGABYTE
    if free < needed:
        raise DreamboothError(
            f"{free:.1f} GB are free and the trainer's environment needs up to {needed} GB while it is made",
            where=str(folder),
            remedy="make room, or put the project on another disk, and repeat",
        )


def _name_unused(folder: Path, say: Say) -> None:
    others = [path for path in folder.parent.glob("py*") if path.is_dir() and path != folder]
    if others:
        say(f"If nothing runs in them, these may be deleted: {', '.join(path.name for path in others)}")
