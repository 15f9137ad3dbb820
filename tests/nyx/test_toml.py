"""Lines of keys in TOML text, against the standard parser's values."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from nyx.toml import key_lines


def test_tables_keys_strings_and_arrays():
    text = '''# comment with [brackets] = 3
top = "a [ b"
[one]
a = [
  "]", # ]
  2,
]
b = """
[not.a.table]
c = 3
"""
'quoted key' = 1
d.e = 5
[ two . three ] # end
f = {g = 1, h = [1, 2]}
i = \'\'\'x\'\'\'
[[four]]
j = 1
'''
    tomllib.loads(text)
    assert key_lines(text) == {
        ("top",): 2,
        ("one",): 3,
        ("one", "a"): 4,
        ("one", "b"): 8,
        ("one", "quoted key"): 12,
        ("one", "d", "e"): 13,
        ("two", "three"): 14,
        ("two", "three", "f"): 15,
        ("two", "three", "i"): 16,
        ("four",): 17,
        ("four", "j"): 18,
    }


VALUES = st.sampled_from(
    ['"x # y"', "'['", "[\n  1,\n  2\n]", '"""\na = 1\n[x]\n"""', "'''\n]\n'''", "3 # [", "{a = 1}", "true", '"\\"["']
)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(VALUES, max_size=4)), max_size=4, unique_by=lambda t: t[0]))
def test_each_key_is_found_on_the_line_where_it_was_written(tables):
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for name, values in tables:
        expected[(name,)] = len("\n".join([*lines, ""]).split("\n")) if lines else 1
        lines.append(f"[{name}]")
        for i, value in enumerate(values):
            expected[(name, f"k{i}")] = len("\n".join([*lines, ""]).split("\n"))
            lines.append(f"k{i} = {value}")
    text = "\n".join(lines)
    tomllib.loads(text)
    assert key_lines(text) == expected
