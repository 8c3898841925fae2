"""Counts tokens as Kimi's tokenizer does: byte pairs by rank, for text in Latin letters and Han characters."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final

RANKS: Final = Path(__file__).parents[1] / "../shared/data/kimi_tokenizer/tiktoken.model"

_HAN: Final = "\u3400-\u4dbf\u4e00-\u9fff"
_LETTERS: Final = f"[^\\W\\d_{_HAN}]"
_PIECES: Final = re.compile(
    f"[{_HAN}]+"
    f"|[^\\r\\n\\w]?(?:(?![a-z]){_LETTERS})*(?:(?![A-Z]){_LETTERS})+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    f"|[^\\r\\n\\w]?(?:(?![a-z]){_LETTERS})+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|."
)


class KimiTokens:
    """The tokenizer that the file of ranks describes; special tokens are the caller's."""

    def __init__(self, ranks: Path) -> None:
        lines = ranks.read_bytes().splitlines()
        self._ranks = {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in lines if line)}
        self._count = lru_cache(maxsize=200_000)(self._merged)

    def count(self, text: str) -> int:
        return sum(self._count(piece) for piece in _PIECES.findall(text))

    def _merged(self, piece: str) -> int:
        """The lowest rank first, until no pair has one."""
        raw = piece.encode()
        if raw in self._ranks:
            return 1
        parts = [raw[at : at + 1] for at in range(len(raw))]
        while len(parts) > 1:
            pairs = [(self._ranks.get(left + right, 1 << 60), at) for at, (left, right) in enumerate(pairwise(parts))]
            rank, at = min(pairs)
            if rank == 1 << 60:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return len(parts)
