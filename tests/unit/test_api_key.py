"""A virtual key is recognised, and a mistyped one refused, by its text alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.api_key import LENGTH, _checksum, digest, hint, is_well_formed, new_secret

SECRET = new_secret(bytes(range(32)))


def test_a_key_has_the_documented_form() -> None:
    """kgw_, 32 characters of base 62, 6 of checksum."""
    assert SECRET.startswith("kgw_")
    assert len(SECRET) == LENGTH == 42
    assert SECRET[4:].isalnum()
    assert SECRET.isascii()


def test_a_key_worked_by_hand() -> None:
    """Chance that is the number 63 gives a body of zeros that ends in 11, and the CRC-32 of that."""
    secret = new_secret(bytes(31) + b"\x3f")
    assert secret == "kgw_" + "0" * 30 + "11" + secret[-6:]
    assert is_well_formed(secret)


@given(st.binary(min_size=32, max_size=64))
def test_every_key_made_is_well_formed(chance: bytes) -> None:
    """What we hand out we accept."""
    assert is_well_formed(new_secret(chance))


@given(st.integers(0, LENGTH - 1), st.sampled_from("0Zaz_-é~\x00\ud800"))
def test_one_mistyped_character_is_noticed(place: int, character: str) -> None:
    """Any single change breaks the prefix, the alphabet or the checksum."""
    changed = SECRET[:place] + character + SECRET[place + 1 :]
    assert is_well_formed(changed) == (changed == SECRET)


def test_a_right_checksum_does_not_excuse_a_wrong_character() -> None:
    """The checksum can be computed over anything; a key is base 62 only."""
    body = "é" * 32
    assert not is_well_formed(f"kgw_{body}{_checksum(body)}")


@pytest.mark.parametrize("text", ["", "kgw_", SECRET[:-1], SECRET + "0", SECRET.upper(), "sk-" + SECRET[3:], "é" * 42])
def test_other_texts_are_no_keys(text: str) -> None:
    """Length, prefix and case matter."""
    assert not is_well_formed(text)


@given(st.text())
def test_no_text_raises(text: str) -> None:
    """A header may carry anything."""
    is_well_formed(text)
    digest(text)


def test_what_is_kept_of_a_key() -> None:
    """Its SHA-256 whole, and its last four characters for its owner."""
    assert digest(SECRET) == hashlib.sha256(SECRET.encode()).digest()
    assert hint(SECRET) == SECRET[-4:]
