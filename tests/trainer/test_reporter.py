"""What is shown of a run: a bar on a terminal, plain lines in a pipe, every line in the log, and never an error."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import sys
from pathlib import Path

import pytest

from dreambooth.trainer import reporter
from dreambooth.trainer.reporter import Reporter, duration

STEP = {
    "step": 3, "of": 10, "loss": 0.1234, "instance_loss": 0.1, "prior_loss": 0.0234, "lr": 1e-6, "it_s": 2.0,
    "eta_s": 75.0, "memory_gb": 1.25,
}  # fmt: skip


def lines(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


@pytest.fixture
def shown(tmp_path):
    out = io.StringIO()
    made = Reporter(tmp_path / "log.txt", out)
    yield made, out, tmp_path / "log.txt"
    made.close()


def test_a_pipe_gets_plain_lines_with_loss_rate_time_left_and_memory(shown) -> None:
    made, out, log = shown
    made.show("phase", {"name": "training", "of": 10})
    made.show("step", STEP)
    assert lines(out) == [
        "Training",
        "training 3/10 loss 0.1234 (instance 0.1000, prior 0.0234) · 1.2 GB · 2.00 steps/s · 1:15 left",
    ]
    assert [line[20:] for line in log.read_text(encoding="utf-8").splitlines()] == lines(out)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in log.read_text().splitlines())


def test_plain_progress_is_the_first_the_last_and_one_every_ten_seconds(shown, monkeypatch) -> None:
    made, out, _ = shown
    now = [100.0]
    monkeypatch.setattr(reporter.time, "monotonic", lambda: now[0])
    made.show("phase", {"name": "training", "of": 40})
    for step in range(1, 41):
        now[0] += 1
        made.show("step", {**STEP, "step": step, "of": 40})
    assert [int(line.split()[1].split("/")[0]) for line in lines(out)[1:]] == [1, 11, 21, 31, 40]


def test_each_part_of_a_phase_counts_for_itself(shown) -> None:
    made, out, _ = shown
    made.show("phase", {"name": "caching", "of": 7})
    for name, of in (("images", 2), ("captions", 1)):
        for done in range(1, of + 1):
            made.show("progress", {"name": name, "done": done, "of": of})
    assert lines(out) == ["Encoding images", "images 1/2", "images 2/2", "captions 1/1"]


def test_where_sample_pictures_are_is_said_once_for_each_step(shown, tmp_path) -> None:
    made, out, log = shown
    for step, number in ((0, 0), (0, 1), (5, 0), (5, 1)):
        made.show("sample", {"step": step, "path": tmp_path / f"{step}-{number}.png"})
    assert lines(out) == [f"Sample pictures of step {step}: {tmp_path}" for step in (0, 5)]
    assert log.read_text().count(".png") == 4


def test_numbers_that_are_not_known_are_left_out(shown) -> None:
    made, out, _ = shown
    made.show("step", {**STEP, "loss": None, "prior_loss": 0.0, "eta_s": None})
    assert lines(out) == ["training 3/10 loss nan · 1.2 GB"]


def test_what_happens_besides_is_told_or_only_logged(shown) -> None:
    made, out, log = shown
    made.show("exported", {"step": 4, "path": "out/a.safetensors", "sha256": "0"})
    made.show("warning", {"text": "odd"})
    made.show("sample", {"step": 4, "prompt": "cat", "path": "samples/p.png"})
    made.show("checkpoint", {"step": 4, "path": "state/step-4"})
    made.show("error", {"text": "broken", "remedy": "mend it"})
    made.show("phase", {"name": "stopped", "of": 0})
    made.show("ack", {"id": "1"})
    made.show(
        "done", {"path": "out/a.safetensors", "weight_change": {"unet": {"relative": 0.01, "changed": 1.0}}}
    )
    assert lines(out) == [
        "Written: out/a.safetensors",
        "Note: odd",
        "Sample pictures of step 4: samples",
        "Done: out/a.safetensors  (relative change of the weights: unet 1.00e-02)",
    ]
    logged = log.read_text(encoding="utf-8")
    for text in ("p.png", "state/step-4", "error: broken What to do: mend it", "stopped", "Done: "):
        assert text in logged


def test_sample_pictures_between_steps_are_a_line_of_the_log_and_no_bar(shown) -> None:
    made, out, log = shown
    made.show("phase", {"name": "training", "of": 10})
    for done in (0, 1, 2):
        made.show("progress", {"name": "samples", "done": done, "of": 2})
    assert lines(out) == ["Training"]
    assert log.read_text(encoding="utf-8").splitlines()[-1].endswith("Making sample pictures (2)")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="a terminal as POSIX has it")
@pytest.mark.parametrize("columns", [0, 120], ids=["a container's", "120 columns"])
def test_a_terminal_gets_one_bar_with_phase_step_loss_rate_time_left_and_memory(columns, tmp_path) -> None:
    with _terminal(columns) as (out, seen):
        made = Reporter(tmp_path / "log.txt", out)
        made.show("phase", {"name": "training", "of": 10})
        for step in (1, 2, 3):
            made.show("step", {**STEP, "step": step})
        made.write("a word between")
        made.show("step", {**STEP, "step": 10})
        made.close()
    phase, rest, end = "".join(seen).split("\r\n", 2)
    assert phase == "Training"
    assert rest.endswith("\ra word between")
    last = end.rstrip().rsplit("\r", 1)[-1]
    assert re.fullmatch(
        r"training: 100%\|.*\| 10/10 \[\d\d:\d\d<\d\d:\d\d, .*, loss 0\.1234, 1\.2 GB\]", last
    ), last
    assert end.count("\n") == 1, "one bar, in one line"
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "training 10/10" in logged and "\r" not in logged


@contextlib.contextmanager
def _terminal(columns: int):
    """A terminal to write to, and a list that has what was seen on it after the block."""
    import fcntl
    import termios

    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    seen: list[str] = []
    with os.fdopen(terminal, "w", encoding="utf-8") as out:
        yield out, seen
    with (
        os.fdopen(screen, "rb", buffering=0) as source,
        contextlib.suppress(OSError),
    ):  # the other end is closed
        content = b""
        while piece := source.read(1 << 16):
            content += piece
            seen[:] = [content.decode(errors="replace")]


class _Gone(io.StringIO):
    """A console whose window was closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return True


class _Closed(_Gone):
    def write(self, text: str) -> int:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("console", [_Gone, _Closed])
def test_a_console_that_has_gone_is_no_error_and_the_log_goes_on(console, tmp_path) -> None:
    made = Reporter(tmp_path / "log.txt", console())
    made.write("hello")
    made.show("phase", {"name": "training", "of": 10})
    made.show("step", STEP)
    made.show("step", {**STEP, "step": 10})
    made.close()
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "hello" in logged and "training 10/10" in logged


def test_a_bar_whose_console_goes_in_the_middle_is_no_error(tmp_path, monkeypatch) -> None:
    class Going(io.StringIO):
        def isatty(self) -> bool:
            return True

    console = Going()
    made = Reporter(None, console)
    made.show("phase", {"name": "training", "of": 10})
    made.show("step", STEP)
    assert "training: " in console.getvalue()
    monkeypatch.setattr(console, "write", _Gone().write)
    made.show("step", {**STEP, "step": 4})
    made.write("never seen")
    made.close()


def test_a_process_without_a_console_has_a_log(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    made = Reporter(tmp_path / "log.txt")
    made.write("hello")
    made.close()
    assert "hello" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk as Linux has it")
def test_a_full_disk_under_the_log_is_no_error(tmp_path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    out = io.StringIO()
    made = Reporter(tmp_path / "log.txt", out)
    made.write("hello")
    made.log("only there")
    made.close()
    assert lines(out) == ["hello"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (75, "1:15"), (3700, "1:01:40"), (360000, "100:00:00")]
)
def test_durations_read_like_a_clock(seconds, text) -> None:
    assert duration(seconds) == text
