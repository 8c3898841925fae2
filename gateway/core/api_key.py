"""A virtual key is 192 random bits that can be recognised, and refused when mistyped, without asking any database.

``kgw_``, 32 characters of base 62, and the CRC-32 of those in 6 more: the form that secret scanners know from GitHub.
Only the SHA-256 of a key is ever kept, and its last four characters as a hint for its owner.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from typing import Final

PREFIX: Final = "kgw_"
BODY_LENGTH: Final = 32
CHECKSUM_LENGTH: Final = 6
LENGTH: Final = len(PREFIX) + BODY_LENGTH + CHECKSUM_LENGTH
RANDOM_BYTES_MIN: Final = 32
HINT_LENGTH: Final = 4

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CHARACTERS: Final = frozenset(_ALPHABET)
_NO_KEY: Final = "~" * LENGTH


def new_secret(random_bytes: bytes) -> str:
    """The key made of that chance, 32 bytes or more: 256 bits taken modulo 62^32 leave no bias worth a name."""
    assert len(random_bytes) >= RANDOM_BYTES_MIN
    body = _base62(int.from_bytes(random_bytes, "big"), BODY_LENGTH)
    return f"{PREFIX}{body}{_checksum(body)}"


def is_well_formed(secret: str) -> bool:
    """Whether this can be a key at all: prefix, length, alphabet, checksum. The same work for every text."""
    candidate = secret if len(secret) == LENGTH else _NO_KEY
    body, checksum = candidate[len(PREFIX) : -CHECKSUM_LENGTH], candidate[-CHECKSUM_LENGTH:]
    has_prefix = _same(candidate[: len(PREFIX)], PREFIX)
    has_alphabet = sum(character not in _CHARACTERS for character in body) == 0
    has_checksum = _same(checksum, _checksum(body))
    return has_prefix & has_alphabet & has_checksum


def digest(secret: str) -> bytes:
    """What is kept of a key: its SHA-256, 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def hint(secret: str) -> str:
    """What may be shown of a key: its last four characters, which are of its checksum."""
    return secret[-HINT_LENGTH:]


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode("utf-8", "surrogatepass")), CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        characters.append(_ALPHABET[digit])
    return "".join(reversed(characters))


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))
