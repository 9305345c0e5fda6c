from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth.pipfailure import explain

RETRY = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3>: Failed "
    "to establish a new connection: [Errno -2] Name or service not known')': /simple/torch/\n"
)
ABSENT = "ERROR: No matching distribution found for torch==2.13.0\n"


@pytest.mark.parametrize(
    ("log", "what"),
    [
        (RETRY + ABSENT, "cannot be reached"),
        (ABSENT, "the package index has no torch==2.13.0 for this Python"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "no space left",
        ),
        ("OSError: [WinError 112] There is not enough space on the disk\n", "no space left"),
        (
            "HINT: This error might have occurred since this system does not have Windows Long Path support\n",
            "too long",
        ),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))\n" + ABSENT,
            "certificate",
        ),
        ("ProxyError('Cannot connect to proxy.', OSError('407'))\n" + ABSENT, "proxy does not answer"),
        ("PermissionError: [WinError 32] The process cannot access the file\n", "cannot be written"),
        ("ERROR: something that nobody has seen before\n", "failed: something that nobody has seen before"),
    ],
)
def test_the_cause_and_a_remedy_are_named(tmp_path: Path, log: str, what: str):
    path = tmp_path / "pip.log"
    path.write_text(log, encoding="utf-8")
    error = explain(path, doing="installing")
    assert error.what.startswith("installing failed")
    assert what in error.what
    assert str(path) in error.remedy


def test_only_the_log_s_end_counts_however_long_it_is(tmp_path: Path):
    path = tmp_path / "pip.log"
    path.write_text(ABSENT + "line\n" * 200_000 + "No space left on device", encoding="utf-8")
    assert "no space left" in explain(path, doing="installing").what


def test_a_log_that_is_not_there_still_gives_an_error(tmp_path: Path):
    assert explain(tmp_path / "none", doing="installing").what == "installing failed"
