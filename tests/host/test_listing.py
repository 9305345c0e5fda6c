"""The list of runs reads a run again only when it has changed."""

from __future__ import annotations

import pytest

from dreambooth.host import listing as module
from dreambooth.host.endings import Ending
from dreambooth.host.listing import Listing
from dreambooth.host.watch import Watcher
from dreambooth.shared.events import EventLog
from dreambooth.shared.runfolder import create_run


def ending_of(run) -> Ending:
    return Ending("it died", "resume")


@pytest.fixture
def listing():
    return Listing(Watcher(ending_of, lambda run: False), ending_of)


@pytest.fixture
def reads(monkeypatch):
    """The names of the runs that are read whole."""
    names = []
    whole = module.summarize
    monkeypatch.setattr(module, "summarize", lambda run: names.append(run.name) or whole(run))
    return names


def emit(run, *events) -> None:
    log = EventLog(run.events)
    for name, fields in events:
        log.emit(name, **fields)
    log.close()


def test_runs_are_listed_the_newest_first_with_their_states(tmp_path, listing):
    first, second = create_run(tmp_path, "a", ""), create_run(tmp_path, "b", "")
    emit(first, ("plan", {"steps": 5}), ("step", {"step": 3}), ("phase", {"name": "stopped", "of": 0}))
    emit(second, ("plan", {"steps": 5}), ("step", {"step": 2}))
    rows = listing.rows(tmp_path)
    assert [(row["name"], row["state"], row["step"], row["steps"], row["error"]) for row in rows] == [
        ("b", "interrupted", 2, 5, "it died"),
        ("a", "stopped", 3, 5, ""),
    ]


def test_a_run_is_read_again_only_when_it_has_changed(tmp_path, listing, reads):
    run = create_run(tmp_path, "a", "")
    create_run(tmp_path, "b", "")
    emit(run, ("plan", {"steps": 5}))
    for _ in range(3):
        listing.rows(tmp_path)
    assert sorted(reads) == ["a", "b"]
    emit(run, ("error", {"text": "nan", "remedy": ""}))
    assert [row["error"] for row in listing.rows(tmp_path) if row["name"] == "a"] == ["nan"]
    assert sorted(reads) == ["a", "a", "b"]


def test_a_living_run_is_never_read_whole(tmp_path, listing, reads):
    run = create_run(tmp_path, "a", "")
    emit(run, ("plan", {"steps": 5}))
    with run.hold():
        for step in range(1, 4):
            emit(run, ("step", {"step": step}))
            row = listing.rows(tmp_path)[0]
            assert (row["state"], row["step"], row["steps"]) == ("running", step, 5)
    assert reads == []
    assert listing.rows(tmp_path)[0]["state"] == "interrupted"


def test_a_run_whose_trainer_is_on_its_way_counts_as_running(tmp_path, listing):
    run = create_run(tmp_path, "a", "")
    assert listing.rows(tmp_path, run.path)[0]["state"] == "running"


def test_what_is_no_run_is_not_listed(tmp_path, listing):
    create_run(tmp_path / "elsewhere", "a", "")
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "a")
    assert listing.rows(tmp_path) == []
    assert listing.rows(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ("output_kind: checkpoint\nadapter: auto\n", "checkpoint"),
        ("output_kind: lora\nadapter: dora\n", "dora"),
        ("output_kind: lycoris\nadapter: lokr\n", "lokr"),
        ("output_kind: diffusers\n", "diffusers"),
        ("output_kind: [", ""),
        ("", ""),
    ],
)
def test_a_run_is_listed_with_what_it_makes(tmp_path, listing, config, kind):
    create_run(tmp_path, "a", config)
    assert [row["kind"] for row in listing.rows(tmp_path)] == [kind]
