"""A fingerprint is of what the model will read, in the order in which a chat template writes it, and of nothing else.

The chain is one running xxh3_64, seeded with a secret, whose value is taken at boundaries only. What goes in: the tools
as they are sent, then of each message role, content, name, ``tool_call_id``, ``reasoning_content``, tool calls and
``partial``, in this order whatever the order of its members. What stays out: sampling parameters, ``tool_choice``,
``response_format`` (no Kimi template writes them), ``cache_control``, ``prompt_cache_key``, metadata and whatever else
no template reads. Values go in as raw JSON, which says itself where it ends, and what may be absent after a byte that
no JSON begins with: two conversations never make the same bytes. The same text in another spelling (``\\u00e9`` for é)
is another conversation here; that is a miss, never a false hit.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import lru_cache
from operator import itemgetter
from typing import Final

import xxhash
from msgspec import Raw

from gateway.core.prefix import BOUNDARIES_MAX, Boundary, Fingerprint
from gateway.surfaces.bodies import is_null
from gateway.surfaces.conversation import Conversation

LAST_MESSAGES: Final = 8
"""A turn of up to seven messages finds the prompt before it among these; a longer one by its assistant's message."""
DOCUMENT_STEP_BYTES: Final = 16_384
DOCUMENT_BOUNDARIES_MAX: Final = 8
"""Inside one document: every 16 kB, or every 32, 64 … where these would be more."""
MEMBER_BYTES: Final = 13
"""What JSON writes around a member of a message: its name, quotes, colon, comma."""
SAMPLES: Final = 16
SAMPLE_BYTES: Final = 512

_ROLE: Final = itemgetter("role")
_CONTENT: Final = itemgetter("content")
_NO_STEPS: Final[Mapping[int, int]] = {}
_TRUE: Final = b"true"
_TOOLS, _NAME, _CALL_ID, _REASONING, _PARTIAL = b"\x00", b"\x01", b"\x02", b"\x03", b"\x04"
_OTHERS: Final = (
    (_TOOLS, "tools"),
    (_NAME, "name"),
    (_CALL_ID, "tool_call_id"),
    (_REASONING, "reasoning_content"),
)


def fingerprint_of(
    conversation: Conversation, tools: Raw | None, *, tools_bytes: int, messages_bytes: int, seed: int
) -> Fingerprint:
    """The boundaries of a conversation that was read. The sizes are UTF-8, and the last boundary's is their sum."""
    cuts = _cuts(
        len(conversation.messages),
        head=conversation.head,
        first_user=conversation.first_user,
        last_assistant=conversation.last_assistant,
        has_tools=tools is not None,
    )
    reading = _Reading(conversation, seed)
    family = 0
    if tools is not None:
        family = reading.begin(tools)
        if 0 in cuts:
            reading.keep(family, is_passing=cuts[0])
    special = _special(conversation)
    steps = _document_steps(conversation, BOUNDARIES_MAX - len(cuts)) if conversation.documents else _NO_STEPS
    stops = sorted({*cuts, *special, *[index + 1 for index in special]}) if special else cuts
    position = 0
    for stop in stops:
        if not stop:
            continue
        if position in special:
            reading.message(position, step=steps.get(position))
        else:
            reading.run(position, stop)
        position = stop
        if stop in cuts:
            digest = reading.digest()
            reading.keep(digest, is_passing=cuts[stop])
            if stop == conversation.head:
                family = digest
    return Fingerprint(
        boundaries=_sized(reading.kept, tools_bytes=tools_bytes, messages_bytes=messages_bytes), family=family
    )


@lru_cache(maxsize=1_024)
def _cuts(last: int, *, head: int, first_user: int, last_assistant: int, has_tools: bool) -> Mapping[int, bool]:
    """After how many of ``last`` messages a boundary is kept, in order, and whether it is a passing one; 0 is after the
    tools.

    First what others may share, then where this conversation has been, then every 2^j messages, the deepest first.
    The message before the last counts as shared: several questions may be asked about the same messages.
    """
    cuts = {last: False}
    for place in (head, first_user, last - 1):
        if place > 0:
            cuts[place] = False
    for place in (last_assistant, *range(last - 2, last - LAST_MESSAGES, -1)):
        if place > 0:
            cuts.setdefault(place, True)
    power = 1 << (last.bit_length() - 1)
    while power and len(cuts) < BOUNDARIES_MAX:
        cuts[power] = False
        power >>= 1
    if has_tools and len(cuts) < BOUNDARIES_MAX:
        cuts[0] = False
    return dict(sorted(cuts.items()))


def _document_steps(conversation: Conversation, left: int) -> dict[int, int]:
    """How far apart the boundaries inside each document are, the deepest document first, ``left`` of them in all."""
    steps: dict[int, int] = {}
    for index, size in reversed(conversation.documents.items()):
        step, kept_max = DOCUMENT_STEP_BYTES, min(left, DOCUMENT_BOUNDARIES_MAX)
        if kept_max < 1:
            break
        while (size - 1) // step > kept_max:
            step *= 2
        steps[index] = step
        left -= (size - 1) // step
    return steps


def _special(conversation: Conversation) -> Set[int]:
    """The messages that are more than a role and a string, or long. None has less than two members."""
    special = {*conversation.contents, *conversation.documents}
    lengths = list(map(len, conversation.messages))
    if lengths.count(2) != len(lengths):
        special.update([index for index, length in enumerate(lengths) if length != 2])
    return special


class _Reading:
    """The running hash over one conversation; the size that it has reached, as raw JSON has it; what it has kept."""

    __slots__ = ("_conversation", "_hash", "_pieces", "kept", "weight")

    def __init__(self, conversation: Conversation, seed: int) -> None:
        self._conversation = conversation
        self._hash = xxhash.xxh3_64(seed=seed)
        self._pieces: list[Raw | bytes] = []
        self.weight = 0
        self.kept: list[tuple[int, int, bool]] = []

    def begin(self, tools: Raw) -> int:
        self._hash.update(tools)
        return self._hash.intdigest()

    def run(self, start: int, stop: int) -> None:
        """Messages that are a role and a string, each."""
        messages = self._conversation.messages[start:stop]
        pieces: list[Raw | bytes] = [b""] * (2 * len(messages))
        pieces[0::2] = map(_ROLE, messages)  # this way it costs half of a loop: there may be ten thousand
        pieces[1::2] = map(_CONTENT, messages)
        self._pieces += pieces
        self.weight += 2 * MEMBER_BYTES * len(messages)

    def message(self, index: int, *, step: int | None) -> None:
        """Any message; ``step`` is the distance of the boundaries inside it, None for none."""
        conversation = self._conversation
        message = conversation.messages[index]
        pieces: list[Raw | bytes] = [message["role"]]
        content = conversation.contents.get(index)
        if content is None:
            pieces.append(message["content"])
        else:
            pieces.extend(content)
        for mark, name in _OTHERS:
            value = message.get(name)
            if value is not None and not is_null(value):
                pieces += (mark, value)
        pieces.extend(conversation.calls.get(index, ()))
        if bytes(message.get("partial", b"")) == _TRUE:
            pieces.append(_PARTIAL)
        self.weight += sum(map(len, message.values())) + MEMBER_BYTES * len(message) - sum(map(len, pieces))
        self.weight += conversation.media_extra.get(index, 0)
        if step is None:
            self._pieces += pieces
        else:
            self._document(b"".join(pieces), step, (conversation.documents[index] - 1) // step)

    def _document(self, text: bytes, step: int, count: int) -> None:
        """``count`` boundaries: what a message has beside its content does not make it more of a document."""
        start = 0
        for stop in range(step, len(text), step)[:count]:
            self._pieces.append(text[start:stop])
            self.keep(self.digest(), is_passing=False)
            start = stop
        self._pieces.append(text[start:])

    def digest(self) -> int:
        self._flush()
        return self._hash.intdigest()

    def _flush(self) -> None:
        read = b"".join(self._pieces)
        self._pieces.clear()
        self._hash.update(read)
        self.weight += len(read)
        if self._conversation.is_escaped:
            self.weight -= 3 * _escapes(read)

    def keep(self, digest: int, *, is_passing: bool) -> None:
        self.kept.append((digest, self.weight, is_passing))


def _escapes(text: bytes) -> int:
    """About how many ``\\u`` escapes there are: sizes feed an estimate, and the whole is measured apart."""
    size = len(text)
    if size <= SAMPLES * SAMPLE_BYTES:
        return text.count(b"\\u")
    sample = b"".join([text[start : start + SAMPLE_BYTES] for start in range(0, size, size // SAMPLES)])
    return size * sample.count(b"\\u") // len(sample)


def _sized(kept: list[tuple[int, int, bool]], *, tools_bytes: int, messages_bytes: int) -> tuple[Boundary, ...]:
    """Boundaries with their part of the size that was measured; one that would add nothing is left out."""
    last, total, _ = kept[-1]
    size_bytes = tools_bytes + messages_bytes
    boundaries: list[Boundary] = []
    before = 0
    for digest, weight, is_passing in kept[:-1]:
        size = tools_bytes + weight * messages_bytes // total
        if before < size < size_bytes:
            boundaries.append(Boundary(digest, size, is_passing))
            before = size
    boundaries.append(Boundary(last, size_bytes))
    return tuple(boundaries)
