from __future__ import annotations

import pickle

import pytest

from dreambooth.shared.errors import DreamboothError, InputError, RunFailed, StoppedByUser, quoted


@pytest.mark.parametrize(
    ("kind", "code"), [(DreamboothError, 1), (InputError, 2), (RunFailed, 1), (StoppedByUser, 130)]
)
def test_each_error_has_the_exit_code_of_the_command_line(kind: type[DreamboothError], code: int) -> None:
    error = kind("what", where="where", remedy="remedy")
    assert error.exit_code == code
    with pytest.raises(DreamboothError):
        raise error


def test_the_message_says_where_what_and_what_to_do() -> None:
    error = InputError("there is no such file", where="photos é", remedy="check the path")
    assert str(error) == "photos é: there is no such file\n  What to do: check the path"


def test_parts_that_are_not_given_leave_nothing_behind() -> None:
    assert str(InputError("no")) == "no"
    assert str(InputError("no", where="here")) == "here: no"
    assert str(InputError("no", remedy="yes")) == "no\n  What to do: yes"


def test_an_error_survives_the_way_from_one_process_to_another() -> None:
    error = pickle.loads(pickle.dumps(InputError("what", where="where", remedy="remedy")))
    assert type(error) is InputError
    assert (error.what, error.where, error.remedy) == ("what", "where", "remedy")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("C:\\x", "'C:\\x'"),
        (r"\\server\photos", r"'\\server\photos'"),
        (7, "7"),
        (["C:\\x"], "['C:\\x']"),
        ("two\nlines", r"'two\nlines'"),
    ],
)
def test_a_value_is_quoted_as_its_owner_wrote_it(value: object, shown: str) -> None:
    assert quoted(value) == shown
    assert len(quoted("x" * 10_000)) < 100
