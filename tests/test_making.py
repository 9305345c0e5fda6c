from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_clone import write_wheel

from dreambooth import environment, making, pins
from dreambooth.shared.errors import DreamboothError, StoppedByUser

posix = pytest.mark.skipif(os.name == "nt", reason="locks are inherited on POSIX only")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an environment is to be made."""
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path)
    return tmp_path / "py-test"


def _is_free(folder: Path) -> bool:
    said: list[str] = []
    entered = threading.Event()

    def enter() -> None:
        with making.alone(folder, said.append):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    while thread.is_alive() and not said:
        thread.join(0.01)
    return entered.is_set()


@posix
def test_two_never_make_one_environment_and_the_second_says_that_it_waits(folder: Path):
    said: list[str] = []
    order: list[str] = []
    waits = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    def second() -> None:
        with making.alone(folder, say):
            order.append("second")

    with making.alone(folder, print):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert said == ["Another start is making the environment; waiting for it."]


@posix
def test_a_child_that_outlives_its_parent_keeps_the_lock(folder: Path):
    with making.alone(folder, print) as inherited:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=inherited)
    assert not _is_free(folder)
    child.communicate(b"\n")
    assert _is_free(folder)


def test_ctrl_c_is_said_as_a_stop_and_frees_the_lock(folder: Path):
    with pytest.raises(StoppedByUser, match="stopped"), making.alone(folder, print):
        raise KeyboardInterrupt
    assert _is_free(folder)


def test_what_cannot_be_written_is_one_message(folder: Path):
    with (
        pytest.raises(DreamboothError, match="cannot be made: No space left") as error,
        making.alone(folder, print),
    ):
        raise OSError(28, "No space left on device", str(folder))
    assert error.value.where == str(folder)


def test_a_folder_for_environments_that_cannot_be_made_is_one_message(tmp_path: Path):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "environments" / "x"
    with pytest.raises(DreamboothError, match=r"Not a directory|cannot find"), making.alone(below, print):
        pytest.fail("it was entered")


def test_too_little_space_is_said_before_anything_is_removed_or_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(DreamboothError, match=r"1.0 GB are free and .* needs up to 3 GB"):
        making.make(folder, making.Recipe("cpu"), say=print, inherited=())
    assert not folder.exists()


def test_what_is_left_of_an_earlier_making_loses_its_stamp_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    folder.mkdir()
    (folder / "stamp.json").write_text("{}", encoding="utf-8")

    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        making._remove(folder)
    assert not (folder / "stamp.json").exists()


def _site(
    folder: Path, monkeypatch: pytest.MonkeyPatch, abilities: str
) -> tuple[making._Site, making._Runner]:
    monkeypatch.setattr(making, "_ABILITIES", f"print('''{abilities}''')")
    folder.mkdir()
    run = making._Runner(folder, ())
    return making._create_site(folder, making.Recipe("cpu"), run), run


WITHOUT_ENSUREPIP = '{"modules": ["venv"], "pip": "23.1", "isolated": false}'
WITHOUT_VENV = '{"modules": [], "pip": "9.0", "isolated": false}'
WITHOUT_ANYTHING = '{"modules": ["venv"], "pip": "", "isolated": false}'
EMBEDDED = '{"modules": [], "pip": "24.0", "isolated": true}'


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    write_wheel(folder, "tiny-thing", "1.0", "tiny_thing")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize("abilities", [WITHOUT_ENSUREPIP, WITHOUT_VENV], ids=["no ensurepip", "no venv"])
def test_a_python_without_ensurepip_or_venv_gets_its_libraries_by_its_own_pip(
    folder: Path, monkeypatch: pytest.MonkeyPatch, abilities: str
):
    site, run = _site(folder, monkeypatch, abilities)
    run.pip(site, "tiny-thing", doing="installing")
    done = run.python(str(site.python), "-c", "import tiny_thing; print(tiny_thing.__file__)", site=site)
    assert str(folder) in done.stdout, done.stderr


@pytest.mark.parametrize("abilities", [WITHOUT_ANYTHING, EMBEDDED], ids=["no pip", "embedded"])
def test_a_python_with_which_nothing_can_be_made_is_refused_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, abilities: str
):
    with pytest.raises(DreamboothError, match="without its venv module") as error:
        _site(folder, monkeypatch, abilities)
    assert (
        f"apt install python3.{sys.version_info[1]}-venv" in error.value.remedy
        or "python.org" in error.value.remedy
    )


def test_what_a_python_is_able_to_do_is_told_by_itself(folder: Path):
    folder.mkdir()
    answer = making._Runner(folder, ()).python(sys.executable, "-c", making._ABILITIES).stdout
    assert '"venv"' in answer and '"isolated": false' in answer


def test_pip_is_told_where_to_find_packages_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch):
    folder.mkdir()
    told = {"PIP_INDEX_URL": "https://mirror.example", "PIP_CERT": "ca.pem", "PIP_PROXY": "p"}
    untold = {
        "PIP_TARGET": "/x",
        "PIP_PREFIX": "/x",
        "PIP_CONSTRAINT": "c.txt",
        "PYTHONPATH": "/x",
        "LD_PRELOAD": "",
    }
    for name, value in (told | untold | {"PIP_USER": "1"}).items():
        monkeypatch.setenv(name, value)
    environ = making._Runner(folder, ())._environ
    assert {name: environ[name] for name in told} == told
    assert environ["PIP_USER"] == "0"
    assert not set(untold) & set(environ)


def test_libraries_that_cannot_be_imported_are_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(making, "_VERIFY", "raise ImportError('libcudart.so.13: cannot open')")
    folder.mkdir()
    run = making._Runner(folder, ())
    with pytest.raises(DreamboothError, match=r"cannot be imported: ImportError: libcudart\.so\.13"):
        making._verify(making._Site(Path(sys.executable), ()), run, making.Recipe("cpu"), tests=False)


def test_a_plain_recipe_has_8_bit_adamw_only_with_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch):
    recipes: dict[str, making.Recipe] = {}

    def make(folder: Path, recipe: making.Recipe, **_: object) -> environment.Environment:
        recipes[recipe.kind] = recipe
        return environment.Environment(folder, Path(sys.executable), {})

    monkeypatch.setattr(making, "make", make)
    monkeypatch.setattr("dreambooth.torchbuild.index_has", lambda *_: False)
    monkeypatch.setattr("dreambooth.torchbuild.cards", list)
    for kind in ("cpu", "cuda"):
        monkeypatch.setenv(environment.TORCH_VARIABLE, kind)
        making.make_plain(say=print)
    assert pins.EIGHT_BIT not in recipes["cpu"].files
    assert pins.EIGHT_BIT in recipes["cuda"].files
