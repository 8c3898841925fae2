"""A caller's limits travel as headers, as OpenAI sends them: the limit, what remains of it, and when it is whole again.

``x-ratelimit-limit-requests: 60``, ``x-ratelimit-remaining-requests: 59``, ``x-ratelimit-reset-requests: 1s``, and the
same for tokens; none for a kind that has no limit.
"""

from __future__ import annotations

from gateway.core.limits import NO_RATES, RateStates


def rate_headers(rates: RateStates) -> dict[str, str]:
    """The headers for these limits."""
    headers: dict[str, str] = {}
    if rates is NO_RATES:
        return headers
    for kind, state in (("requests", rates.requests), ("tokens", rates.tokens)):
        if state is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(state.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(state.remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(state.reset_ms)
    return headers


def duration(milliseconds: int) -> str:
    """``20ms``, ``1.5s``, ``1m0s``."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
