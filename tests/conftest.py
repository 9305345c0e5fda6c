"""For every test: one thread, no network, no hub, and no environment made on the way."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported by anybody
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DREAMBOOTH_PYTHON"] = (
    sys.executable
)  # whatever a test starts runs in the Python that runs the tests
for name in ("DREAMBOOTH_TORCH", "DREAMBOOTH_ENTERED", "ACCELERATE_MIXED_PRECISION"):
    os.environ.pop(name, None)

WEBUI_VARIABLE = "DREAMBOOTH_WEBUI"


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs_card = [item for item in items if item.get_closest_marker("gpu")]
    if needs_card and not _has_card():
        for item in needs_card:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA card"))
    if not os.environ.get(WEBUI_VARIABLE):
        for item in items:
            if item.get_closest_marker("webui"):
                item.add_marker(pytest.mark.skip(reason=f"{WEBUI_VARIABLE} does not name an installed WebUI"))


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a socket in the file system
    host = str(address[0])
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails there and then; this machine's own addresses are allowed."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> object:
        if not _is_local(address):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
