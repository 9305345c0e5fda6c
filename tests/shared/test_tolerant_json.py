import json

import pytest

from dreambooth.shared.tolerant_json import MAX_DEPTH, BrokenJSON, loads


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -12,
        1.5e-7,
        "",
        'say "hi"\\ / \b\f\n\r\t é 😀',
        [],
        {},
        [1, [2, {"a": [None, False]}], "x"],
        {"a": {"b": {}}, "": "empty name"},
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_whatever_json_can_say_is_read_as_the_standard_library_reads_it(value, ascii_only):
    for indent in (None, 2):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
        assert loads(text) == json.loads(text) == value
        assert type(loads(text)) is type(value)


def test_comments_trailing_commas_single_quotes_and_an_assignment_are_accepted():
    text = """\ufeff# a comment
    concepts_list = [  // another
        {'a': 1, /* and
        a third */ "b": "# no // comment /* here */",},
        None, True, False,
    ]
    # the end"""
    assert loads(text) == [{"a": 1, "b": "# no // comment /* here */"}, None, True, False]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"C:\photos\new\table", r"C:\photos\new\table"),
        (r"C:\\photos\\new", r"C:\photos\new"),
        (r"C:\\mixed\new", r"C:\mixed\new"),
        (r"photos\bob", r"photos\bob"),
        (r"\\server\share\x", r"\\server\share\x"),
        (r"\\\\server\\share\\x", r"\\server\share\x"),
        (r"C:\\Users\\Jos\u00e9", "C:\\Users\\José"),
        (r"C:\Users\u00e9", "C:\\Usersé"),
        (r"\/content\/data", "/content/data"),
        ("C:/photos", "C:/photos"),
    ],
)
def test_paths_keep_their_backslashes_whether_doubled_or_not(written, meant):
    assert loads(f'{{"dir": "{written}"}}', path_keys=["dir"]) == {"dir": meant}


def test_a_path_that_ends_in_a_backslash_ends_at_its_quote():
    text = '{"dir": "C:\\photos\\", "other": "x"}'
    assert loads(text, path_keys=["dir"]) == {"dir": "C:\\photos\\", "other": "x"}


def test_escapes_in_other_strings_mean_what_json_says_and_unknown_ones_stay():
    assert loads(r'{"prompt": "a\tb \(c\) \u00e9"}', path_keys=["dir"]) == {"prompt": "a\tb \\(c\\) é"}


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ('[\n  {"a": 1}\n  {"b": 2}\n]', 3, 3, "expected ','"),
        ('[\n  {"a" 1}\n]', 2, 8, "':'"),
        ('{"a": sks dog}', 1, 7, "'sks' is not a value"),
        ('{"a": "x\n"}', 1, 7, "not closed"),
        ("[1, 2", 1, 1, "ends before"),
        ("[1] 2", 1, 5, "after the end"),
        ("", 1, 1, "ends where a value"),
        ("/* open", 1, 1, "never closed"),
        ('{"a": 1, "a": 2}', 1, 10, "twice"),
        ("{a: 1}", 1, 2, "double quotes"),
        ("[,]", 1, 2, "expected a value"),
        ("[1,,2]", 1, 4, "expected a value"),
        ("[01]", 1, 2, "expected a value"),
        ("[NaN]", 1, 2, "not a value"),
        (r'["\ud83d"]', 1, 2, "half"),
    ],
)
def test_truly_broken_text_is_refused_with_line_and_column(text, line, column, says):
    with pytest.raises(BrokenJSON) as caught:
        loads(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert says in caught.value.what


def test_nesting_without_end_is_refused():
    assert loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(BrokenJSON, match="deep"):
        loads("[" * 100_000)
