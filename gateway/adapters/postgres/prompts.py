"""A prompt is kept in 13 bytes and 12 more per boundary; whatever was packed is unpacked the same.

Form 1, big-endian: the form (u8), family (u64), anchored tokens (u32), then every digest (u64), then every token
count (u32), shallow to deep. A form that this version does not know is as good as nothing kept.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.core.prefix import Prompt

_FORM: Final = 1
_HEAD: Final = struct.Struct(">BQI")
_BOUNDARY_BYTES: Final = 8 + 4
_TOKENS_MAX: Final = 2**32 - 1
_DIGEST_MASK: Final = 2**64 - 1


def packed(prompt: Prompt) -> bytes:
    """Never raises: a count that is beyond any prompt is cut, so that no record stops the ones behind it."""
    count = len(prompt.digests)
    return _HEAD.pack(_FORM, prompt.family & _DIGEST_MASK, _count(prompt.anchored_tokens)) + struct.pack(
        f">{count}Q{count}I",
        *(digest & _DIGEST_MASK for digest in prompt.digests),
        *(_count(tokens) for tokens in prompt.tokens[:count]),
        *(0 for _ in range(count - len(prompt.tokens))),
    )


def unpacked(data: bytes | None) -> Prompt | None:
    """The prompt, or None where none was kept, or none that can be read."""
    if data is None or len(data) < _HEAD.size or data[0] != _FORM:
        return None
    count, rest = divmod(len(data) - _HEAD.size, _BOUNDARY_BYTES)
    if rest or not count:
        return None
    _, family, anchored_tokens = _HEAD.unpack_from(data)
    values = struct.unpack_from(f">{count}Q{count}I", data, _HEAD.size)
    return Prompt(digests=values[:count], tokens=values[count:], family=family, anchored_tokens=anchored_tokens)


def _count(tokens: int) -> int:
    return min(max(tokens, 0), _TOKENS_MAX)
