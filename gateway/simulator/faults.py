"""What goes wrong goes wrong on command: a fault is a value, and the seed says which requests it strikes.

Set by JSON (``POST /__sim/faults``) or by :meth:`Faults.add`; ``KINDS`` names every kind and what it does. Several
faults may strike one request; of several refusals the first that was set wins.
"""

from __future__ import annotations

from random import Random
from typing import Final, Literal

import msgspec

REFUSALS: Final = {
    "close_before_response": "the connection is closed before any byte of an answer",
    "reset_before_response": "the connection is reset (RST) before any byte of an answer",
    "rate_limit_concurrency": "429, too many at once",
    "rate_limit_rpm": "429, too many requests a minute",
    "rate_limit_tpm": "429, too many tokens a minute",
    "rate_limit_tpd": "429, too many tokens a day",
    "engine_overloaded": "429, the provider has no capacity",
    "quota_exceeded": "the account has no quota left (Moonshot 429, CometAPI 403, EvoLink 402)",
    "balance_exhausted": "the account is suspended for its balance (same statuses)",
    "content_filter": "400, the content was rejected",
    "invalid_request": "the request is called invalid though it is not",
    "invalid_key": "401",
    "incorrect_key": "401 in its second wording",
    "permission_denied": "403",
    "payment_required": "402",
    "request_timeout": "408",
    "too_large": "413",
    "model_gone": "the model is not served, in the provider's words",
    "server_error": "500",
    "unexpected_output": "500, the model ended in an invalid state",
    "bad_gateway_html": "502 with an HTML body",
    "unavailable": "503",
    "gateway_timeout": "504",
    "overloaded_529": "529",
    "error_in_ok": "200 with an error body",
    "html_ok": "200 with an HTML page",
    "status": "any answer: `status`, `body`, `content_type`",
}
TIMING: Final = {
    "stall_before_first_byte": "nothing for `seconds` (absent: until the client leaves)",
    "stall_mid_stream": "silence for `seconds` after `after_chunks` (absent: until the client leaves)",
    "comments_mid_stream": "the same silence, with a comment every `ms`",
    "slow_chunks": "`ms` between chunks",
}
CUTS: Final = {
    "reset_mid_body": "RST after `after_chunks` (without stream: in the middle of the body)",
    "close_mid_body": "the connection closes without the end of the body, at the same place",
    "cut_stream": "the body ends in good order after `after_chunks`, without finish, usage and [DONE]",
    "error_event": "an error event after `after_chunks`, then the end",
}
FORM: Final = {
    "missing_done": "no [DONE]",
    "malformed_event": "an event that is not JSON after `after_chunks`; without stream the body is cut short",
    "json_for_stream": "one plain JSON answer to a request for a stream",
    "crlf": "lines end in CR LF",
    "no_space": "no space after `data:`",
    "no_tool_index": "tool call pieces without `index`",
    "keepalive_comments": "a comment before every event",
    "split": "writes cut at every byte, inside UTF-8 or inside JSON escapes: `mode` = byte | utf8 | escape",
}
USAGE: Final = {
    "missing_usage": "no usage anywhere",
    "zero_usage": "usage with all zeros",
    "usage_placement": "`placement` = choice | chunk | both | finish | none",
    "cached_spelling": "`spelling` = top | nested | both | conflicting | over_prompt | none",
    "inflated_prompt": "`prompt_tokens` told as 1.5 times what it was (the bill stays true)",
}
CONTENT: Final = {
    "served_model": "the answer names the model `served`",
    "think_in_content": "reasoning inside <think> tags in the content",
    "special_tokens": "the tool call leaks into the content as special tokens",
    "empty_content": "reasoning uses up the output limit: finish `length`, no content",
    "invalid_tool_arguments": "`mode` = truncated (not JSON) | schema (JSON that breaks the schema)",
    "unknown_function": "the tool calls name functions that the request does not have",
    "false_finish": "finish `stop` though tools are called",
    "no_reasoning": "no reasoning field at all",
}
KINDS: Final = REFUSALS | TIMING | CUTS | FORM | USAGE | CONTENT


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault. The first block says whom it strikes, the second how; unused parameters are ignored.

    ``after_chunks`` counts events from the start, or, when negative, from the end: -1 is just before [DONE].
    ``billed`` true bills a refusal as if it had been answered: the request ran, the answer was lost.
    """

    kind: str
    model: str | None = None
    credential: str | None = None
    stream: bool | None = None
    share: float = 1.0
    count: int | None = None
    after_seconds: float = 0.0
    window_seconds: float | None = None

    after_chunks: int = 1
    seconds: float | None = None
    ms: float = 20.0
    retry_seconds: int = 1
    retry_after: str | None = None
    message: str | None = None
    status: int = 500
    body: str = ""
    content_type: str = "text/plain"
    mode: Literal["byte", "utf8", "escape", "truncated", "schema"] | None = None
    placement: Literal["choice", "chunk", "both", "finish", "none"] = "none"
    spelling: Literal["top", "nested", "both", "conflicting", "over_prompt", "none"] = "none"
    served: str = "kimi-k2.6"
    billed: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown fault {self.kind!r}. Known: {', '.join(KINDS)}.")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is a probability from 0 to 1, not {self.share}.")


class _Active:
    """A fault that was set, with what is left of it."""

    __slots__ = ("closes_at", "fault", "left", "opens_at", "struck")

    def __init__(self, fault: Fault, now: float) -> None:
        self.fault = fault
        self.left = fault.count
        self.opens_at = now + fault.after_seconds
        self.closes_at = None if fault.window_seconds is None else self.opens_at + fault.window_seconds
        self.struck = 0


Struck = dict[str, Fault]
"""The faults of one request by kind."""


class Faults:
    """The faults that are set at one provider. The seed fixes the draws of ``share``, in order of arrival."""

    __slots__ = ("_active", "_random")

    def __init__(self, seed: str) -> None:
        self._active: list[_Active] = []
        self._random = Random(seed)

    def add(self, fault: Fault, *, now: float) -> None:
        self._active.append(_Active(fault, now))

    def clear(self, kinds: frozenset[str] | None = None) -> None:
        """Removes the faults of these kinds; None removes all."""
        self._active = [active for active in self._active if kinds is not None and active.fault.kind not in kinds]

    def strike(self, *, model: str, credential: str, stream: bool, now: float) -> Struck | None:
        """The faults that this request meets; None when there are none (the usual case)."""
        if not self._active:
            return None
        struck: Struck = {}
        for active in self._active:
            if active.fault.kind not in struck and self._strikes(active, model, credential, stream=stream, now=now):
                active.struck += 1
                if active.left is not None:
                    active.left -= 1
                struck[active.fault.kind] = active.fault
        return struck or None

    def _strikes(self, active: _Active, model: str, credential: str, *, stream: bool, now: float) -> bool:
        fault = active.fault
        if active.left == 0 or now < active.opens_at:
            return False
        if active.closes_at is not None and now >= active.closes_at:
            return False
        if fault.model not in (None, model) or fault.credential not in (None, credential):
            return False
        if fault.stream not in (None, stream):
            return False
        return fault.share >= 1 or self._random.random() < fault.share

    def as_json(self) -> list[dict[str, object]]:
        return [{"fault": active.fault, "struck": active.struck, "left": active.left} for active in self._active]


def refusal_of(struck: Struck) -> Fault | None:
    """The first fault that answers instead of the model."""
    return next((fault for kind, fault in struck.items() if kind in REFUSALS), None)
