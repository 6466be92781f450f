"""YAML: plain values alone; a text that is made to run code or to fill the memory is an error at once."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from udrl_pipeline.yaml_text import parse_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=9
)
#: Each level holds the one before nine times: nine levels are 387 million values.
LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "*a0: aliases are not read"),
        (MERGES, "*a0: aliases are not read"),
        ("a: &a [*a]", "*a: aliases are not read"),
        ("a: !!python/object/apply:os.system ['echo hello']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !something x", "could not determine a constructor"),
        ("a: " + "[" * 50_000, "is nested too deeply"),
        ("a: " + "9" * 5_000, "Exceeds the limit"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: \x00", "special characters are not allowed"),
        ("a: \x1b[31m", "special characters are not allowed"),
        ("a: [", "expected the node content"),
        ("a: b\n---\nc: d", "expected a single document"),
    ],
)
def test_what_is_no_plain_yaml_is_an_error(text: str, says: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        parse_yaml(text)
    assert says in str(caught.value)


@given(PLAIN)
def test_plain_values_are_read_as_they_were_written(value: object) -> None:
    assert parse_yaml(yaml.dump(value, Dumper=_WithoutAliases)) == value


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"#%@`,? \n\t0.~<=")))
def test_any_text_is_read_or_an_error(text: str) -> None:
    with suppress(yaml.YAMLError):
        parse_yaml(text)


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True
