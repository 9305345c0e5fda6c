from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from dreambooth.shared import events
from dreambooth.shared.errors import DreamboothError
from dreambooth.shared.events import SCHEMA, Event, EventLog, newest_first, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[EventLog]:
    log = EventLog(path)
    yield log
    log.close()


def numbers(path: Path) -> list[int]:
    return [event["step"] for event in read_events(path)[0]]


def test_the_schema_has_the_events_that_readers_of_other_languages_rely_on() -> None:
    assert set(SCHEMA) == {
        "plan", "phase", "progress", "step", "sample", "checkpoint", "exported", "warning", "error", "ack", "done",
    }  # fmt: skip
    assert not any({"time", "event"} & set(fields) for fields in SCHEMA.values())


def test_what_was_emitted_is_read_back_in_order_with_its_time(path: Path, log: EventLog) -> None:
    for name, fields in SCHEMA.items():
        log.emit(name, **{field: f"{field} of {name}" for field in fields})
    found, end = read_events(path)
    assert [event.name for event in found] == list(SCHEMA)
    assert all(event[field] == f"{field} of {event.name}" for event in found for field in SCHEMA[event.name])
    assert sorted(event.time for event in found) == [event.time for event in found]
    assert end == path.stat().st_size


def test_a_line_is_strict_json_without_nan(path: Path, log: EventLog) -> None:
    log.emit(
        "step",
        step=3,
        loss=math.nan,
        lr=math.inf,
        it_s=[-math.inf, 1.5],
        memory_gb={"a": math.nan, 2: (1, 2)},
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert {key: line[key] for key in ("event", "step", "loss", "lr")} == {
        "event": "step", "step": 3, "loss": None, "lr": None,
    }  # fmt: skip
    assert line["it_s"] == [None, 1.5]
    assert line["memory_gb"] == {"a": None, "2": [1, 2]}


@pytest.mark.parametrize(
    "text",
    ["two\nlines\r\n", "\u2028\x85\x0c\0", "ein Hünd 🐕", '"quoted" \\back\\', "half a pair \udcff", ""],
)
def test_any_text_stays_one_line_and_comes_back_as_it_was(path: Path, log: EventLog, text: str) -> None:
    log.emit("warning", text=text)
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().decode("utf-8")
    assert read_events(path)[0][0]["text"] == text


def test_paths_become_text(path: Path, log: EventLog, tmp_path: Path) -> None:
    log.emit("sample", step=1, path=tmp_path / "a b.png")
    assert read_events(path)[0][0]["path"] == str(tmp_path / "a b.png")


def test_an_event_that_the_schema_does_not_know_is_refused_and_leaves_no_trace(
    path: Path, log: EventLog
) -> None:
    with pytest.raises(ValueError, match="'stpe'"):
        log.emit("stpe", step=1)
    with pytest.raises(TypeError):
        log.emit("warning", text=PurePosixPath)
    assert path.read_bytes() == b""


def test_reading_goes_on_where_it_ended(path: Path, log: EventLog) -> None:
    assert read_events(path) == ([], 0)
    log.emit("step", step=1)
    first, offset = read_events(path)
    log.emit("step", step=2)
    log.emit("step", step=3)
    second, end = read_events(path, offset)
    assert [event["step"] for event in first + second] == [1, 2, 3]
    assert read_events(path, end) == ([], end)


def test_a_file_that_is_not_there_has_no_events(path: Path) -> None:
    assert read_events(path, 17) == ([], 17)


def test_another_file_of_the_same_name_is_read_from_its_beginning(path: Path, log: EventLog) -> None:
    log.emit("step", step=1)
    found, end = read_events(path, 10**6)
    assert [event["step"] for event in found] == [1]
    assert end == path.stat().st_size


def test_a_torn_last_line_waits_until_it_is_whole(path: Path) -> None:
    whole = b'{"time": 1, "event": "step", "step": 1}\n'
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert read_events(path) == ([Event(1.0, "step", {"step": 1})], len(whole))
    path.write_bytes(whole + whole)
    assert len(read_events(path, len(whole))[0]) == 1


def test_wherever_the_file_was_torn_it_is_mended_when_it_is_opened_again(path: Path, tmp_path: Path) -> None:
    lines = [f'{{"time": 1, "event": "step", "step": {n}, "prompt": "dög"}}\n'.encode() for n in (1, 2)]
    content = b"".join(lines)
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        log = EventLog(path)
        log.emit("step", step=3)
        log.close()
        # a line that lacks nothing but its end is whole once it is ended
        whole = sum(cut >= len(b"".join(lines[: n + 1])) - 1 for n in range(2))
        assert numbers(path) == [*[1, 2][:whole], 3], cut


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\0\0\0\0", b"\xff\xfe{", b"{", b"null", b"3", b"[]", b'"step"', b"{}", b'{"event": 3}', b'{"event": null}',
        b"[" * 100_000, b'{"event": "step", "step": ' + b"9" * 5000 + b"}", b'{"time": 1, "event": "step" "step": 1}',
    ],
)  # fmt: skip
def test_lines_that_are_no_events_are_left_out(path: Path, line: bytes) -> None:
    whole = b'{"time": 1, "event": "step", "step": 1}\n'
    path.write_bytes(whole + line + b"\n" + whole)
    found, end = read_events(path)
    assert end == path.stat().st_size
    steps = [event.fields.get("step") for event in found]
    assert steps[0] == steps[-1] == 1
    assert len(found) <= 2 or line.startswith(
        b'{"event": "step"'
    )  # before 3.11 Python reads any whole number


@pytest.mark.parametrize("time", ['"soon"', "null", "[1]", "NaN", "Infinity", "1" + "0" * 400])
def test_an_event_without_a_sensible_time_is_still_an_event(path: Path, time: str) -> None:
    path.write_text(f'{{"time": {time}, "event": "step", "step": 1}}\n{{"event": "step", "step": 2}}\n')
    assert [(event.time, event["step"]) for event in read_events(path)[0]] == [(0.0, 1), (0.0, 2)]


def test_fields_and_events_from_the_future_are_handed_on(path: Path) -> None:
    path.write_text('{"time": 2.5, "event": "dance", "partners": [1, 2], "new": {}}\n')
    assert read_events(path)[0] == [Event(2.5, "dance", {"partners": [1, 2], "new": {}})]


def test_a_log_goes_on_in_the_file_that_is_there(path: Path) -> None:
    for step in (1, 2):
        log = EventLog(path)
        log.emit("step", step=step)
        log.sync()
        log.close()
        log.close()
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_a_disk_that_takes_a_part_of_a_line_leaves_none_of_it(
    path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    log.emit("step", step=1)
    write, parts = os.write, [taken]

    def full(file: int, content: bytes) -> int:
        if not parts or not parts[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[: parts.pop()])

    monkeypatch.setattr(events.os, "write", full)
    with pytest.raises(DreamboothError, match="no space is left") as error:
        log.emit("step", step=2)
    assert error.value.where == str(path)
    monkeypatch.undo()
    assert path.read_bytes().endswith(b"}\n")
    log.emit("step", step=3)
    assert numbers(path) == [1, 3]


def test_a_line_that_is_taken_in_pieces_is_whole_in_the_end(
    path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(events.os, "write", lambda file, content: write(file, content[:7]))
    log.emit("step", step=1, prompt="ein Hünd" * 20)
    log.emit("step", step=2)
    assert numbers(path) == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_said_as_one() -> None:
    log = EventLog(Path("/dev/full"))
    try:
        with pytest.raises(DreamboothError, match="no space is left"):
            log.emit("step", step=1)
    finally:
        log.close()


@pytest.mark.parametrize("block", [1, 2, 7, 64, 10**6])
@pytest.mark.parametrize("end", ["", "\n", '{"time": 9, "event": "st', "\n\n[]\n"])
def test_from_the_end_the_same_events_are_read_as_from_the_beginning(
    path: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch, block: int, end: str
) -> None:
    monkeypatch.setattr(events, "_BLOCK", block)
    for step in range(7):
        log.emit("step", step=step)
        log.emit("warning", text='"event": "plan" ' + "wörter " * step)
    log.emit("plan", steps=3)
    with path.open("a", encoding="utf-8") as file:
        file.write(end)
    for names in (("step",), ("warning", "plan"), ("done",), tuple(SCHEMA)):
        expected = [event for event in read_events(path)[0] if event.name in names]
        assert list(newest_first(path, *names)) == expected[::-1]


def test_a_log_that_is_not_there_or_empty_has_no_newest_event(
    tmp_path: Path, path: Path, log: EventLog
) -> None:
    assert list(newest_first(tmp_path / "none", "step")) == list(newest_first(path, "step")) == []
