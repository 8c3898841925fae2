"""Experience is what finished answers taught: bytes per token, answer lengths, pace. Bounded, in process, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.core.estimate import AnswerLength, Calibration
from gateway.core.load import UNKNOWN_PACE, Pace

PACE_WEIGHT: Final = 0.1
WHOLE_FRAME_BYTES: Final = 400
"""What a whole chat completion is besides its text: ids, names, usage."""
INPUT_PRIOR: Final = Calibration()


class Experience:
    """Learned per public model (tokenizers differ by model, not by provider) and, for pace, per account."""

    __slots__ = ("_input", "_length", "_output", "_pace", "_whole")

    def __init__(self) -> None:
        self._input: dict[str, Calibration] = {}
        self._output: dict[str, Calibration] = {}
        self._length: dict[str, AnswerLength] = {}
        self._pace: dict[tuple[str, str], Pace] = {}
        self._whole: dict[str, Calibration] = {}

    @property
    def pace(self) -> Mapping[tuple[str, str], Pace]:
        return self._pace

    def input_tokens(self, model: str, size_bytes: int) -> int:
        return self._input.get(model, INPUT_PRIOR).tokens(size_bytes)

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
        self._output[model] = self._output.get(model, INPUT_PRIOR).learn(output_bytes, output_tokens)
        self._length[model] = self.answer_length(model).learn(output_tokens)

    def learn_pace(
        self, provider: str, account: str, *, first_chunk_seconds: float | None, tokens_per_second: float
    ) -> None:
        """How fast one finished answer came, folded into a moving mean; a whole body tells nothing of first chunks."""
        before = self._pace.get((provider, account), UNKNOWN_PACE)
        self._pace[(provider, account)] = Pace(
            first_chunk_seconds=_moved(
                before.first_chunk_seconds, first_chunk_seconds, unknown=UNKNOWN_PACE.first_chunk_seconds
            ),
            tokens_per_second=_moved(
                before.tokens_per_second, tokens_per_second, unknown=UNKNOWN_PACE.tokens_per_second
            ),
        )


def _moved(before: float, sample: float | None, *, unknown: float) -> float:
    if sample is None:
        return before
    return sample if before == unknown else before + PACE_WEIGHT * (sample - before)
