from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings_file import MAX_BYTES, parse_yaml, read_file

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


def read(tmp_path: Path, content: str | bytes, name: str = "my settings é.yaml") -> dict[str, Any]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(path, path_keys={"model"})


def problem(tmp_path: Path, content: str | bytes, name: str = "my settings é.yaml") -> InputError:
    with pytest.raises(InputError) as error:
        read(tmp_path, content, name)
    assert error.value.where == str(tmp_path / name)
    assert error.value.remedy
    assert len(error.value.what) < 300 and "\n" not in error.value.what
    return error.value


def test_every_scalar_is_the_text_that_stands_in_the_file(tmp_path: Path) -> None:
    content = "a: no\nb: 001\nc: 1e-6\nd: ${x}\ne: 2026-11-20\nf: 0x10\ng: .inf\nh: 'null'\ni: !!str 12\n"
    assert read(tmp_path, content) == {
        "a": "no", "b": "001", "c": "1e-6", "d": "${x}", "e": "2026-11-20", "f": "0x10", "g": ".inf", "h": "null",
        "i": "12",
    }  # fmt: skip


def test_what_a_file_leaves_empty_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, "a:\nb: null\nc: ~\nd: !!null x\ne: ''\nf: [~, x]\n") == {
        "a": None, "b": None, "c": None, "d": None, "e": "", "f": [None, "x"],
    }  # fmt: skip
    assert read(tmp_path, '{"a": null, "e": ""}', "a.json") == {"a": None, "e": ""}


def test_json_becomes_the_same_text_as_yaml(tmp_path: Path) -> None:
    content = """{ // a comment
        "model": "C:\\models\\new.safetensors",
        "a": true, "b": false, "c": 12, "d": 2e-6, "e": ["x", {"f": 1.5}], # trailing comma
    }"""
    assert read(tmp_path, content, "A.JSON") == {
        "model": "C:\\models\\new.safetensors", "a": "true", "b": "false", "c": "12", "d": "2e-06",
        "e": ["x", {"f": "1.5"}],
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "\n", "# only a comment\n", "---\n", "\ufeff", "null"])
def test_an_empty_file_has_no_settings(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == {}


@pytest.mark.parametrize("content", ["- a\n- b\n", "just text", "[]", "'{}'", "3"])
def test_a_file_that_is_no_mapping_is_told_what_it_should_be(tmp_path: Path, content: str) -> None:
    assert "concepts:" in problem(tmp_path, content).remedy
    assert "concepts:" in problem(tmp_path, json.dumps([content]), "a.json").remedy


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_and_unmarked_unicode_is_read(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, "prompt: ein Hünd 🐕\n".encode(encoding)) == {"prompt": "ein Hünd 🐕"}
    assert read(tmp_path, '{"prompt": "ein Hünd 🐕"}'.encode(encoding), "a.json") == {"prompt": "ein Hünd 🐕"}


@pytest.mark.parametrize("content", ["a: x\nprompt: Hünd\n".encode("latin-1"), b"a: x\n\x80\n", b"\xff\xfea"])
def test_what_is_no_unicode_is_not_guessed_at(tmp_path: Path, content: bytes) -> None:
    assert "UTF-8" in problem(tmp_path, content).remedy
    assert "UTF-8" in problem(tmp_path, content, "a.json").remedy


def test_a_pair_of_escapes_is_one_character(tmp_path: Path) -> None:
    assert read(tmp_path, 'a: "\\ud83d\\ude00"') == {"a": "😀"}
    assert read(tmp_path, json.dumps({"a": "😀"}), "written by a program.yaml") == {"a": "😀"}


@pytest.mark.parametrize(
    ("content", "line"), [("a: 1\nb: x\0y\n", 2), ("a: \x07", 1), ("a: 1\n\n\x1b[0m", 3), ("a: '\x80'", 1)]
)
def test_a_character_that_text_may_not_have_is_named_with_its_line(
    tmp_path: Path, content: str, line: int
) -> None:
    assert f"line {line} " in problem(tmp_path, content).what


@pytest.mark.parametrize(
    ("content", "line", "column", "said"),
    [
        ("a: 1\nb: [1\n", 3, 1, "expected"),
        ("a: b: c\n", 1, 5, "mapping values"),
        ("a:\n\t- x\n", 2, 1, "'\\t'"),
        ("a: 'x\n", 2, 1, "end of stream"),
        ("a: 1\n---\nb: 2\n", 2, 1, "another document"),
        ("a: *x\n", 1, 4, "undefined alias"),
        ("prompt: @home", 1, 9, "'@'"),
        ("a: 1\n? [b, c]\n: d\n", 2, 3, "a name is expected"),
        ("a: 1\n? {b: c}\n: d\n", 2, 3, "a name is expected"),
    ],
)
def test_broken_yaml_is_said_with_line_and_column(
    tmp_path: Path, content: str, line: int, column: int, said: str
) -> None:
    what = problem(tmp_path, content).what
    assert f"at line {line}, column {column}:" in what
    assert said in what


@pytest.mark.parametrize("content", ["", '{"a": 1', '{"a": }', "{a: 1}", '{"a": 1} {}', '{"a": NaN}'])
def test_broken_json_is_said_with_line_and_column(tmp_path: Path, content: str) -> None:
    assert "at line 1, column " in problem(tmp_path, content, "a.json").what


@pytest.mark.parametrize(
    "content", ["steps: 1\nsteps: 2\n", "steps: 1\n'steps': 1\n", "x: [{y: 1, steps: 1, steps: 2}]", "{steps: 1, steps: 1}"]
)  # fmt: skip
def test_a_name_that_stands_twice_is_named(tmp_path: Path, content: str) -> None:
    assert "`steps` is there twice" in problem(tmp_path, content).what
    assert "'steps' is there twice" in problem(tmp_path, '{"steps": 1,\n"steps": 1}', "a.json").what


def test_a_tag_never_runs_code_and_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    for tag in (
        "python/object/apply:pathlib.Path.touch",
        "python/object/new:pathlib.Path",
        "python/name:os.system",
    ):
        assert f"`!!{tag}`" in problem(tmp_path, f"output_name: !!{tag} ['{marker}']\n").what
        assert f"`!!{tag}`" in problem(tmp_path, f"!!{tag} ['{marker}']\n").what
    assert "`!mine`" in problem(tmp_path, "a: !mine x\n").what
    assert "`!!binary`" in problem(tmp_path, "a: !!binary aGk=\n").what
    assert not marker.exists()


def test_aliases_are_copies(tmp_path: Path) -> None:
    found = read(tmp_path, "a: &x {p: q, l: [1, 2]}\nb: *x\n")
    assert found == {"a": {"p": "q", "l": ["1", "2"]}, "b": {"p": "q", "l": ["1", "2"]}}
    assert found["a"] is not found["b"]


@pytest.mark.parametrize(
    "content", [LAUGHS, LAUGHS + "concepts: *a9\n", "a: &a [*a]", "a: &a {b: {c: *a}}", "&a [*a]", "a: " + "[" * 600]
)  # fmt: skip
def test_what_unfolds_without_end_is_refused_at_once(tmp_path: Path, content: str) -> None:
    began = time.monotonic()
    assert "nested too deep" in (what := problem(tmp_path, content).what) or "too many" in what
    assert time.monotonic() - began < 10


def test_lists_in_lists_in_lists_are_refused_with_their_place(tmp_path: Path) -> None:
    assert "at line 2, column " in problem(tmp_path, "b: 1\na: " + "[" * 30 + "]" * 30).what
    assert read(tmp_path, "a: " + "[" * 10 + "]" * 10)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    assert "deep" in problem(tmp_path, '{"a":' * 5000, "a.json").what


def test_a_checkpoint_in_place_of_settings_is_not_read_through(tmp_path: Path) -> None:
    error = problem(tmp_path, b"\0" * (MAX_BYTES + 1), "model.safetensors")
    assert "too large" in error.what and "`model:`" in error.remedy
    text = "x" * (MAX_BYTES - len('{"a": ""}'))
    assert read(tmp_path, f'{{"a": "{text}"}}', "a.json") == {"a": text}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "a\0b.yaml", tmp_path / ("x" * 5000)):
        with pytest.raises(InputError) as error:
            read_file(path)
        assert error.value.where == str(path)


def test_yaml_text_from_elsewhere_is_read_alike() -> None:
    assert parse_yaml("[{a: 1}, ~]", where="command line") == [{"a": "1"}, None]
    assert parse_yaml("", where="command line") is None
    with pytest.raises(InputError) as error:
        parse_yaml("{a: 1", where="command line")
    assert error.value.where == "command line"
