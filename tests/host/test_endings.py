"""Why a trainer ended, read from its log."""

from __future__ import annotations

import pytest

from dreambooth.host.endings import as_error, ending_of, tail
from dreambooth.shared.errors import InputError

TRACEBACK = 'Traceback (most recent call last):\n  File "run.py", line 3, in work\n    x()\n{last}\n'


def log_of(tmp_path, text: str):
    path = tmp_path / "log.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_trainers_own_message_is_taken_with_its_advice(tmp_path):
    log = log_of(tmp_path, "Training\nmodel: there is no such file\n  What to do: check the path\n")
    ending = ending_of(log, code=2)
    assert (ending.where, ending.text, ending.remedy) == ("model", "there is no such file", "check the path")
    assert isinstance(as_error(ending, code=2), InputError)
    assert not isinstance(as_error(ending, code=1), InputError)


def test_all_that_a_message_is_about_is_taken(tmp_path):
    said = "2 images cannot be used:\n  /photos/a.jpg: it is no image\n  /photos/b.jpg: the file is empty"
    log = log_of(tmp_path, f"Disk   9 GB\n       4 GB  more\n{said}\n  What to do: replace or remove them\n")
    ending = ending_of(log, code=2)
    assert (ending.text, ending.remedy) == (said, "replace or remove them")


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 MiB",
            "the card has not enough memory",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ModuleNotFoundError: No module named 'diffusers'", "environment is not whole"),
        ("RuntimeError: CUDA error: unspecified launch failure", "the card or its driver gave up"),
        ("MemoryError", "the computer has not enough memory"),
        ("ValueError: the sky fell", "the trainer failed: ValueError: the sky fell"),
    ],
)
def test_a_traceback_is_said_in_a_sentence_with_what_to_do(tmp_path, last, said):
    ending = ending_of(log_of(tmp_path, "Training\n" + TRACEBACK.format(last=last)), code=1)
    assert said in ending.text
    assert ending.remedy


@pytest.mark.parametrize(
    ("said", "where", "text"),
    [
        (
            "concept 2, class_prompt: it is empty",
            "concepts[1].class_prompt",
            "concept 2, class_prompt: it is empty",
        ),
        ("/photos/a.png: is no image", "", "/photos/a.png: is no image"),
        ("stopped: by hand", "", "stopped: by hand"),
    ],
)
def test_a_message_is_said_of_the_setting_that_it_names(tmp_path, said, where, text):
    ending = ending_of(log_of(tmp_path, f"{said}\n  What to do: something\n"), code=2)
    assert (ending.where, ending.text) == (where, text)


def test_a_crash_of_the_interpreter_is_known(tmp_path):
    log = log_of(tmp_path, "Training\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1\n")
    assert ending_of(log, code=-11).text.startswith("the trainer crashed")


def test_a_process_that_was_killed_left_no_word(tmp_path):
    ending = ending_of(log_of(tmp_path, "Training\ntraining 3/10 loss 0.1\n"), code=-9)
    assert "ended from outside" in ending.text
    assert "resume" in ending.remedy


def test_without_a_log_there_is_still_an_answer(tmp_path):
    assert ending_of(tmp_path / "none.txt").text


def test_the_end_of_a_log_is_cut_to_lines_that_can_be_shown(tmp_path):
    log = log_of(tmp_path, "first\n" + "x" * 1000 + "\n" + "bar 1\rbar 2\rbar 3\n\n" + "last\n")
    assert tail(log, 3) == ["x" * 300 + "…", "bar 3", "last"]
