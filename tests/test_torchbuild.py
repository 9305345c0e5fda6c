from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from dreambooth import pins, torchbuild
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.torchbuild import Card

RELEASE = pins.read(pins.REQUIREMENTS)["torch"]
PASCAL = Card("GTX 1080", (580, 65), (6, 1))
AMPERE = Card("RTX 3090", (580, 65), (8, 6))
BLACKWELL = Card("RTX 5090", (580, 65), (12, 0))


@pytest.mark.parametrize(
    ("cards", "tag"),
    [
        ([AMPERE], "cu130"),
        ([BLACKWELL, AMPERE], "cu130"),
        ([PASCAL], "cu126"),
        ([PASCAL, AMPERE], "cu126"),
        ([AMPERE._replace(driver=(550, 54))], "cu126"),
    ],
)
def test_the_cuda_build_is_one_that_every_card_and_the_driver_can_use(cards: list[Card], tag: str):
    assert torchbuild.cuda_tag(cards, windows=False) == tag


@pytest.mark.parametrize(
    "cards", [[AMPERE._replace(driver=(470, 1))], [PASCAL, BLACKWELL], [BLACKWELL._replace(driver=(572, 16))]]
)
def test_where_no_build_serves_the_driver_or_the_cpu_is_advised(cards: list[Card]):
    with pytest.raises(DreamboothError, match="update the NVIDIA driver") as error:
        torchbuild.cuda_tag(cards, windows=False)
    assert cards[0].name in str(error.value)


def test_windows_needs_a_driver_of_its_own_numbering():
    old = [AMPERE._replace(driver=(527, 0))]
    assert torchbuild.cuda_tag(old, windows=False) == "cu126"
    with pytest.raises(DreamboothError):
        torchbuild.cuda_tag(old, windows=True)


def test_the_cards_are_read_from_the_driver_s_own_tool(monkeypatch: pytest.MonkeyPatch):
    answer = "NVIDIA H200, 580.95.05, 9.0\nNVIDIA GeForce GTX 1080 Ti, 580.95.05, 6.1\n[Not Supported]\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, answer))
    assert torchbuild.cards() == [
        Card("NVIDIA H200", (580, 95, 5), (9, 0)),
        Card("NVIDIA GeForce GTX 1080 Ti", (580, 95, 5), (6, 1)),
    ]


def test_without_the_tool_there_are_no_cards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert torchbuild.cards() == []


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def _yes(_address: str, _release: str) -> bool:
    return True


def _no(_address: str, _release: str) -> bool:
    return False


@pytest.mark.usefixtures("linux")
def test_a_linux_without_a_card_gets_the_cpu_s_build_from_pytorch_s_index():
    build = torchbuild.choose("cpu", has=_yes)
    assert build == ("cpu", f"torch=={RELEASE}+cpu", "https://download.pytorch.org/whl/cpu", ())


@pytest.mark.usefixtures("linux")
def test_where_pytorch_s_index_cannot_be_reached_the_usual_one_serves_and_it_is_said():
    build = torchbuild.choose("cpu", has=_no)
    assert build[:3] == ("cpu", "", "")
    assert "cannot be reached" in build.notes[0]


@pytest.mark.usefixtures("linux")
def test_the_build_that_the_usual_index_has_is_taken_from_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchbuild, "cards", lambda: [AMPERE])
    assert torchbuild.choose("cuda", has=pytest.fail) == ("cuda", "", "", ())


@pytest.mark.usefixtures("linux")
def test_the_cards_decide_which_cuda_build(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchbuild, "cards", lambda: [PASCAL])
    assert torchbuild.choose("cuda", has=_yes).constraint == f"torch=={RELEASE}+cu126"


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("kind", ["cu126", "nonsense"])
def test_a_build_that_was_asked_for_by_its_tag_and_cannot_be_had_is_wrong_input(kind: str):
    with pytest.raises(InputError, match=f"DREAMBOOTH_TORCH={kind}"):
        torchbuild.choose(kind, has=_no)


def test_on_windows_only_the_cpu_s_build_is_the_usual_index_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(torchbuild, "cards", lambda: [AMPERE])
    assert torchbuild.choose("cpu", has=pytest.fail).address == ""
    assert torchbuild.choose("cuda", has=_yes).address == "https://download.pytorch.org/whl/cu130"


def test_a_mac_has_one_build(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert torchbuild.choose("cpu", has=pytest.fail).address == ""


def test_an_index_that_is_named_is_used_unasked():
    build = torchbuild.choose("https://mirror.example/whl/rocm", has=pytest.fail)
    assert build.address == "https://mirror.example/whl/rocm"
    assert build.constraint == ""


PAGE = f'<a href="torch-{RELEASE}%2Bcpu-cp{sys.version_info[0]}{sys.version_info[1]}-cp-linux_x86_64.whl">torch</a>'


@pytest.fixture
def index() -> Iterator[str]:
    """An index on this machine; its /cpu lists the release, its /empty does not, others are not found."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {"/cpu/torch/": PAGE, "/empty/torch/": "<a>torch-0.1</a>"}
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "has"), [("/cpu", True), ("/cpu/", True), ("/empty", False), ("/none", False)]
)
def test_an_index_is_asked_for_this_release_and_this_python(index: str, path: str, has: bool):
    assert torchbuild.index_has(index + path, f"{RELEASE}+cpu") is has


def test_an_index_that_cannot_be_reached_has_nothing(index: str):
    nobody = index.replace("127.0.0.1", "127.0.0.2")
    assert not torchbuild.index_has(nobody, f"{RELEASE}+cpu")
