"""Claims of result names that a deleted run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth.shared.claims import CLAIM_SUFFIX, holder, release_all


def claimed(folder: Path, name: str, run: Path) -> Path:
    path = folder / f"{name}{CLAIM_SUFFIX}"
    path.write_text(json.dumps({"run": str(run)}), encoding="utf-8")
    return path


def test_a_deleted_run_s_claims_go_and_no_others(tmp_path) -> None:
    own, other = (
        claimed(tmp_path, "a", tmp_path / "runs" / "x"),
        claimed(tmp_path, "b", tmp_path / "runs" / "y"),
    )
    release_all(tmp_path, tmp_path / "runs" / "." / "x")
    assert not own.exists() and holder(other) == tmp_path / "runs" / "y"
    release_all(tmp_path / "gone", tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"run": 3}', b"\xff"])
def test_what_is_no_claim_names_nobody_and_stays(tmp_path, content) -> None:
    path = tmp_path / f"a{CLAIM_SUFFIX}"
    path.write_bytes(content)
    assert holder(path) is None
    release_all(tmp_path, tmp_path)
    assert path.exists()
