"""Says in one message why pip failed and what to do, from its own log: standard library only."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

from .shared.errors import DreamboothError

_TAIL_BYTES = 400_000


class Cause(NamedTuple):
    """`sign`: what the log says; `what`, `remedy`: what the user is told, with the sign's group where it has one."""

    sign: re.Pattern[str]
    what: str
    remedy: str


def _cause(sign: str, what: str, remedy: str) -> Cause:
    return Cause(re.compile(sign), what, remedy)


# In this order: a full disk also breaks connections, a broken connection also makes packages "not found".
CAUSES = (
    _cause(
        r"No space left on device|\[Errno 28\]|\[WinError 112\]|Disk quota exceeded",
        "there is no space left on the disk",
        "make room (an environment takes 2 GB, one with CUDA 8 GB) and repeat",
    ),
    _cause(
        r"Windows Long Path support",
        "a path is too long for this Windows",
        "put the project into a folder nearer to the drive's root, or enable long paths in Windows, and repeat",
    ),
    _cause(
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
        "the package index's certificate is not trusted here",
        "behind a company's proxy, name its certificate (PIP_CERT=/path/to/ca.pem) and repeat",
    ),
    _cause(
        r"ProxyError|Cannot connect to proxy",
        "the proxy does not answer",
        "correct HTTPS_PROXY, or PIP_PROXY, and repeat",
    ),
    _cause(
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ConnectionResetError"
        r"|getaddrinfo failed|Temporary failure in name resolution|Network is unreachable|Connection refused"
        r"|Connection broken|IncompleteRead|Name or service not known",
        "the package index cannot be reached: there is no network, or it broke off",
        "connect and repeat (what was downloaded is kept); or set DREAMBOOTH_PYTHON to a Python that has the "
        "libraries already; or PIP_INDEX_URL to an index that can be reached",
    ),
    _cause(
        r"No matching distribution found for (\S+)",
        "the package index has no {} for this Python and system",
        "use Python 3.10 to 3.13, 64 bit; with an index of your own, see that it is complete",
    ),
    _cause(
        r"\[Errno 13\][^\n]*|\[WinError 5\][^\n]*|\[WinError 32\][^\n]*",
        "a file of the environment cannot be written",
        "close what uses it (a training that runs, a virus scanner) and repeat",
    ),
)


def explain(log: Path, *, doing: str) -> DreamboothError:
    """The error for a pip that failed while `doing` something; its log says the cause."""
    text = _tail(log)
    for cause in CAUSES:
        found = cause.sign.search(text)
        if found:
            what = cause.what.format(*found.groups())
            return DreamboothError(f"{doing} failed: {what}", remedy=f"{cause.remedy}. The whole log: {log}")
    errors = re.findall(r"ERROR: ([^\n]+)", text)
    said = f": {errors[-1]}" if errors else ""
    return DreamboothError(
        f"{doing} failed{said}",
        remedy=f"read {log}; repeat with another Python 3.10 to 3.13 (this is {sys.version.split()[0]})",
    )


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
