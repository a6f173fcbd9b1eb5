"""What people put between the digits of a number, and what programs make of those."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.spellings import SEPARATORS, folded, undisguised


def test_every_dash_and_every_space_is_known() -> None:
    """A number that a telephone wrote with its own kind of dash would stay readable."""
    known = re.compile(f"[{SEPARATORS}]").fullmatch
    for one in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(one) in ("Pd", "Zs"):
            assert known(one), ascii(one)
        if one.isalnum():
            assert not known(one), ascii(one)


def test_a_digit_of_any_script_is_that_digit() -> None:
    """A number in Arabic or Thai digits would be another one."""
    for one in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(one) == "Nd":
            assert folded(f"a{one}") == f"a{unicodedata.decimal(one)}"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\u0031\u2011\u0661", "1\u2011\u0661"),
        (r"\\u0031\\\\u0032", "12"),
        (r"\ud835\udfcf", "\U0001d7cf"),
        (r"\xa01\x1b", "\u00a01\\x1b"),
        (r"\u000a\u0041\ud83d\ude00", r"\u000a\u0041\ud83d\ude00"),
        ("%2B1%20555%E2%80%91%D9%A1", "+1 555\u2011\u0661"),
        ("%22%31%25%ff%E2%80", "%221%25%FF%E2%80"),
        ("%2B1+555+000", "+1 555 000"),
        ("100 % of 1+1", "100 % of 1 1"),
        ("1+1", "1+1"),
    ],
)
def test_escapes_of_digits_are_read_and_others_stay(written: str, read: str) -> None:
    """A number in a body that nobody could parse would lie there unseen; and what is no number be rewritten."""
    assert undisguised(written) == read


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    """Whatever a stranger posts is looked through."""
    assert isinstance(undisguised(f"{text}%{text}\\{text}"), str)
    assert len(folded(text)) == len(text)
    assert folded(folded(text)) == folded(text)
