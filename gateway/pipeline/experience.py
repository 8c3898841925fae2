"""Experience is what finished answers taught: bytes per token, answer lengths. Bounded, in process, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from gateway.core.estimate import (
    NO_CALIBRATION,
    PART_FORGET_ABOVE_TOKENS,
    AnswerLength,
    Calibration,
    part_tokens,
)

WHOLE_FRAME_BYTES: Final = 400
"""What a whole chat completion is besides its text: ids, names, usage."""
INPUT_PRIOR: Final = Calibration()
KEYS_MAX: Final = 10_000
"""Pairs of key and model whose own ratio is remembered, those that were answered last."""


class Experience:
    """Learned per public model (tokenizers differ by model, not by provider), of its input also per key (what keys send
    differs: code, prose, languages)."""

    __slots__ = ("_input", "_input_of_key", "_length", "_output", "_whole")

    def __init__(self) -> None:
        self._input: dict[str, Calibration] = {}
        self._input_of_key: OrderedDict[tuple[str, str], Calibration] = OrderedDict()
        self._output: dict[str, Calibration] = {}
        self._length: dict[str, AnswerLength] = {}
        self._whole: dict[str, Calibration] = {}

    def input_tokens(self, model: str, size_bytes: int, *, key_id: str) -> int:
        part = self._input_of_key.get((key_id, model), NO_CALIBRATION)
        return part_tokens(part, self._input.get(model, INPUT_PRIOR), size_bytes)

    def output_tokens(self, model: str, size_bytes: int) -> int:
        return self._output.get(model, INPUT_PRIOR).tokens(size_bytes)

    def answer_length(self, model: str) -> AnswerLength:
        return self._length.get(model, AnswerLength())

    def whole_tokens(self, model: str, body_bytes: int) -> int:
        """Output tokens of a whole answer whose body is so long, escapes and all but its frame counted."""
        return self._whole.get(model, INPUT_PRIOR).tokens(max(0, body_bytes - WHOLE_FRAME_BYTES))

    def learn(
        self,
        model: str,
        *,
        key_id: str,
        input_bytes: int,
        input_tokens: int,
        output_bytes: int,
        output_tokens: int,
        whole_bytes: int = 0,
    ) -> None:
        """One finished answer whose tokens the provider told; ``whole_bytes`` is its body's size if it had one."""
        if whole_bytes:
            before = self._whole.get(model, INPUT_PRIOR)
            self._whole[model] = before.learn(whole_bytes - WHOLE_FRAME_BYTES, output_tokens)
        self._input[model] = self._input.get(model, INPUT_PRIOR).learn(input_bytes, input_tokens)
        part = self._input_of_key.pop((key_id, model), NO_CALIBRATION)
        self._input_of_key[(key_id, model)] = part.learn(
            input_bytes, input_tokens, forget_above=PART_FORGET_ABOVE_TOKENS
        )
        if len(self._input_of_key) > KEYS_MAX:
            self._input_of_key.popitem(last=False)
        self._output[model] = self._output.get(model, INPUT_PRIOR).learn(output_bytes, output_tokens)
        self._length[model] = self.answer_length(model).learn(output_tokens)
