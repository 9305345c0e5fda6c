from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_clone import Clone, SlowIndex, kill, write_all_wheels

from dreambooth import environment, pins
from dreambooth.shared.errors import DreamboothError, InputError

posix = pytest.mark.skipif(os.name == "nt", reason="kill -9, inherited locks, links and rusage are POSIX's")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    write_all_wheels(folder)
    return folder


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, wheels: Path
) -> tuple[Clone, subprocess.CompletedProcess[str]]:
    """A clone whose first start has made its environment, and that start."""
    clone = Clone(tmp_path_factory.mktemp("place") / "ein Pfad mit Ä", wheels)
    return clone, clone.run("train", "Ünïcode and spaces.yaml")


def test_the_first_start_makes_the_environment_and_runs_the_command_in_it(made):
    clone, first = made
    assert first.returncode == 7, first.stderr  # the command's own code
    (folder,) = clone.environments
    prefix, torch, arguments = eval(first.stdout)
    assert Path(prefix) == folder
    assert torch == pins.read(pins.REQUIREMENTS)["torch"]
    assert arguments == ["train", "Ünïcode and spaces.yaml"]
    assert not (folder / "unpacking").exists()


def test_nothing_but_the_command_s_own_output_goes_to_stdout(made):
    _, first = made
    assert len(first.stdout.splitlines()) == 1
    assert "Making the trainer's environment" in first.stderr


def test_the_stamp_tells_what_was_installed(made):
    clone, _ = made
    stamp = json.loads((clone.environments[0] / "stamp.json").read_text(encoding="utf-8"))
    wanted = pins.read(pins.REQUIREMENTS) | pins.read(pins.NO_DEPENDENCIES)
    assert {name: stamp["versions"].get(name) for name in wanted} == wanted
    assert stamp["reused"] == {}


def test_a_torch_without_cuda_where_one_was_wanted_is_said_and_noted(made):
    clone, first = made
    stamp = json.loads((clone.environments[0] / "stamp.json").read_text(encoding="utf-8"))
    assert any("without CUDA" in note for note in stamp["notes"])
    assert "without CUDA" in first.stderr


def test_a_second_start_only_enters(made, tmp_path: Path):
    clone, _ = made
    again = clone.run("runs", PIP_FIND_LINKS=str(tmp_path))  # nothing could be installed
    assert (again.returncode, again.stderr) == (7, "")


def test_the_environment_s_own_python_is_used_as_it_is(made):
    clone, _ = made
    python = environment.python_in(clone.environments[0])
    done = subprocess.run(
        [python, clone.folder / "dreambooth", "runs"],
        env=clone.environ,
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (7, "")


@posix
@pytest.mark.slow
def test_an_older_stamp_does_not_serve_changed_requirements(made, tmp_path: Path, wheels: Path):
    clone, _ = made
    other = Clone(tmp_path / "other", wheels)
    (other.folder / "environments").symlink_to(clone.folder / "environments")
    with (other.folder / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("not_in_any_index==1.0\n")
    before = clone.environments
    done = other.run("runs")
    assert done.returncode == 1
    assert "has no not_in_any_index==1.0" in done.stderr
    assert environment.whole(before[0]), "the old one is left alone"
    for folder in set(clone.environments) - set(before):
        assert environment.whole(folder) is None


def test_the_tests_own_libraries_are_added_to_a_whole_environment(made):
    clone, _ = made
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from dreambooth import environment\n"
        "found = environment.ensure(tests=True); again = environment.find(tests=True)\n"
        "assert again == found and found.stamp['versions']['pytest'], found"
    )
    base = clone.command()[0]
    before = clone.environments[0].joinpath("stamp.json").stat().st_mtime_ns
    done = subprocess.run(
        [base, "-S", "-c", code, clone.folder], env=clone.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Adding the tests' own libraries" in done.stderr
    assert clone.environments[0].joinpath("stamp.json").stat().st_mtime_ns > before


def test_help_is_answered_without_an_environment(tmp_path: Path, wheels: Path):
    clone = Clone(tmp_path / "clone", wheels)
    done = clone.run("--help")
    assert (done.returncode, done.stdout) == (0, "the help\n")
    assert clone.environments == []


@posix
@pytest.mark.slow
def test_a_making_that_was_killed_keeps_others_out_until_its_pip_ends_and_is_repeated(
    tmp_path: Path, wheels: Path
):
    clone = Clone(tmp_path / "clone", wheels)
    with SlowIndex(wheels, held="transformers") as index:
        first = clone.start("runs", PIP_FIND_LINKS=index.address)
        assert index.asked.wait(120)
        kill(first)
        (folder,) = clone.environments
        assert environment.whole(folder) is None
        second = clone.start("runs")
        assert "waiting for it" in second.stderr.readline()
        index.go_on.set()  # the orphaned pip goes on and ends
        _, errors = second.communicate(timeout=300)
    assert second.returncode == 7, errors
    assert "Making the trainer's environment" in errors
    assert environment.whole(folder)
    first.stdout.close()
    first.stderr.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The running code with a folder of environments of its own, and none of this session's variables."""
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path)
    for name in (environment.PYTHON_VARIABLE, environment.TORCH_VARIABLE, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _write_environment(folder: Path, **stamp: object) -> Path:
    python = environment.python_in(folder)
    python.parent.mkdir(parents=True)
    python.touch()
    python.chmod(0o755)
    facts = {"base_python": sys.executable, "packages": None, "tests": None} | stamp
    (folder / "stamp.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_a_folder_without_its_stamp_is_not_whole(project: Path):
    folder = _write_environment(project / "one")
    assert environment.whole(folder).python == environment.python_in(folder)
    (folder / "stamp.json").unlink()
    assert environment.whole(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"base_python": 3}'])
def test_a_torn_stamp_is_no_stamp(project: Path, text: str):
    folder = _write_environment(project / "one")
    (folder / "stamp.json").write_text(text, encoding="utf-8")
    assert environment.whole(folder) is None


def test_an_environment_whose_python_was_removed_is_not_whole(project: Path):
    folder = _write_environment(project / "one", base_python=str(project / "gone"))
    assert environment.whole(folder) is None


def test_each_kind_of_torch_and_each_host_has_a_folder_of_its_own():
    folders = {
        environment.folder_for("cpu"),
        environment.folder_for("cuda"),
        environment.folder_for("https://mirror.example/whl"),
        environment.folder_for("host", host="a"),
        environment.folder_for("host", host="b"),
    }
    assert len(folders) == 5
    assert all(folder.parent == environment.ENVIRONMENTS and "/" not in folder.name for folder in folders)


def test_a_cuda_environment_also_serves_while_the_card_is_not_seen(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(environment, "accelerator", lambda: "cpu")
    assert environment.find() is None
    folder = _write_environment(environment.folder_for("cuda"))
    assert environment.find().folder == folder
    monkeypatch.setattr(environment, "accelerator", lambda: "cu126")
    assert environment.find() is None


def test_an_environment_without_the_tests_libraries_is_not_found_for_the_tests(project: Path):
    folder = _write_environment(environment.folder_for(environment.accelerator()))
    assert environment.find().folder == folder
    assert environment.find(tests=True) is None


def test_the_kind_of_torch_can_be_told(project: Path, monkeypatch: pytest.MonkeyPatch):
    assert environment.accelerator() in ("cpu", "cuda")
    monkeypatch.setenv(environment.TORCH_VARIABLE, " cu126 ")
    assert environment.accelerator() == "cu126"


def test_this_python_has_what_the_trainer_needs():
    assert environment.lacking() == []
    assert environment.this_python_serves()


def test_what_is_absent_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch):
    wanted = (pins.Library("no-such-library", "no_such_module", "1.0"), *pins.LIBRARIES)
    monkeypatch.setattr(pins, "LIBRARIES", wanted)
    assert environment.lacking() == ["no-such-library"]
    monkeypatch.setattr(pins, "LIBRARIES", (pins.Library("pytest", "pytest", "999"),))
    (complaint,) = environment.lacking()
    assert "at least 999 is needed" in complaint


def test_a_python_that_is_forced_is_used_and_what_it_lacks_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(environment.PYTHON_VARIABLE, sys.executable)
    assert environment.this_python_serves()
    monkeypatch.setattr(pins, "LIBRARIES", (pins.Library("no-such-library", "no_such_module", "1.0"),))
    with pytest.raises(InputError, match="lacks no-such-library"):
        environment.this_python_serves()


def test_another_forced_python_is_entered(project: Path, monkeypatch: pytest.MonkeyPatch):
    other = environment.python_in(_write_environment(project / "one"))
    monkeypatch.setenv(environment.PYTHON_VARIABLE, str(other))
    assert not environment.this_python_serves()


def test_an_environment_that_was_entered_and_does_not_serve_is_said_and_not_entered_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pins, "LIBRARIES", (pins.Library("no-such-library", "no_such_module", "1.0"),))
    monkeypatch.setattr(environment, "_run", lambda *_: pytest.fail("it was entered again"))
    monkeypatch.setenv("DREAMBOOTH_ENTERED", "1")
    with pytest.raises(DreamboothError, match="lacks no-such-library"):
        environment.enter("script", [])
    assert "DREAMBOOTH_ENTERED" not in os.environ, "a child of this process may enter"


def test_a_forced_python_that_is_not_there_is_wrong_input(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(environment.PYTHON_VARIABLE, str(project / "no python"))
    with pytest.raises(InputError, match="not a Python"):
        environment.this_python_serves()


def test_a_python_that_accelerate_started_is_never_left(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(environment, "_run", lambda *_: pytest.fail("another Python was entered"))
    environment.enter("script", [])
    monkeypatch.setattr(pins, "LIBRARIES", (pins.Library("no-such-library", "no_such_module", "1.0"),))
    with pytest.raises(InputError, match="accelerate started this Python"):
        environment.enter("script", [])


def test_a_bare_python_enters_the_environment_that_is_there(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pins, "LIBRARIES", (pins.Library("no-such-library", "no_such_module", "1.0"),))
    folder = _write_environment(environment.folder_for(environment.accelerator()))
    entered: list[list[str]] = []

    def run(command: list[str], environ: dict[str, str]) -> None:
        entered.append(command)
        raise SystemExit

    monkeypatch.setattr(environment, "_run", run)
    with pytest.raises(SystemExit):
        environment.enter(
            "script", ["train", "a b"], before_making=lambda: pytest.fail("nothing is to be made")
        )
    assert entered == [[str(environment.python_in(folder)), "script", "train", "a b"]]


def test_wrong_usage_is_said_before_anything_is_made(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pins, "LIBRARIES", (pins.Library("no-such-library", "no_such_module", "1.0"),))

    def usage() -> None:
        raise SystemExit(2)

    with pytest.raises(SystemExit, match="2"):
        environment.enter("script", [], before_making=usage)
    assert list(project.iterdir()) == []


def test_the_trainer_starts_with_nobody_else_s_libraries():
    environ = {
        **{"PYTHONPATH": "/webui", "PYTHONHOME": "/x", "PIP_INDEX_URL": "x", "VIRTUAL_ENV": "/v"},
        **{"PATH": "/bin", "PYTHONUNBUFFERED": "1", "HF_TOKEN": "t", "LD_PRELOAD": "libtcmalloc.so"},
    }
    own = environment.clean_environ(environ)
    kept = {"PATH": "/bin", "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}
    assert own == kept | {"HF_TOKEN": "t", "LD_PRELOAD": "libtcmalloc.so"}
    assert environment.clean_environ(environ, from_host=True) == kept
    assert environment.clean_environ(environ, from_host=True, hub=True) == kept | {"HF_TOKEN": "t"}


def test_packages_without_a_python_of_their_own_are_put_before_others(project: Path):
    found = environment.Environment(project, Path(sys.executable), {"packages": str(project / "packages")})
    environ = environment.environ_for(found, {"PYTHONPATH": "/webui"})
    assert environ["PYTHONPATH"] == str(project / "packages")


@posix
def test_entering_a_whole_environment_costs_less_than_50_ms(made):
    """The processor's time, and of several starts the least: other work on the machine is not the start's."""
    import resource

    clone, _ = made
    python = str(environment.python_in(clone.environments[0]))
    script = str(clone.folder / "dreambooth" / "__main__.py")

    def cost(command: list[str]) -> float:
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, env=clone.environ, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    assert cost(clone.command("runs")) - cost([python, script, "runs"]) < 0.05
