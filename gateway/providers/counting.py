"""What a provider's usage means is decided here once: cached is a part of prompt, reasoning of completion.

A figure that cannot be is not believed, and absence is not zero (law L14): without usable totals there is no usage
and the caller estimates. Source: providers §1.5, §10.1, INTERFACE §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.core.usage import Usage
from gateway.providers.dialect import UsageReports
from gateway.providers.reading import is_token_count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """One usage object's figures as told, inclusive; None = not told."""

    prompt: int
    completion: int
    cached: int | None
    cache_write: int
    reasoning: int | None
    flags: tuple[str, ...] = ()


def count(reports: UsageReports) -> Usage | None:
    """The usage an answer reported, None where it told nothing usable.

    A top-level object wins over those of the choices. Where it is unusable it told nothing, and theirs are taken.
    """
    figures = _figures(reports.top_level)
    if figures is None or not _is_believable(figures, reports):
        figures = _combined(reports)
    return None if figures is None else _usage(figures)


def _is_believable(figures: _Figures, reports: UsageReports) -> bool:
    """An answer with content has tokens on both sides; whatever was generated had a prompt."""
    if reports.answer_has_content:
        return figures.prompt > 0 and figures.completion > 0
    return figures.prompt > 0 or figures.completion == 0


def _usage(figures: _Figures) -> Usage:
    flags = figures.flags
    if figures.cache_write > figures.prompt - min(figures.cached or 0, figures.prompt):
        flags = (*flags, "cache_write_exceeds_prompt")
    return Usage.from_wire(
        prompt=figures.prompt,
        completion=figures.completion,
        cached=figures.cached,
        cache_write=figures.cache_write,
        reasoning=figures.reasoning,
        flags=flags,
    )


def _combined(reports: UsageReports) -> _Figures | None:
    """The choices' own objects as one: the prompt was read once, each choice was written by itself.

    Choices that disagree on the prompt leave the largest, on the cached part the smallest, on the written part the
    largest: each errs towards charging, never below the bill. A choice that told nothing usable makes the sum unknown.
    """
    choices = map(_figures, reports.by_choice.values())
    told = [figures for figures in choices if figures is not None and _is_believable(figures, reports)]
    completion = sum(figures.completion for figures in told)
    if not told or len(told) < max(len(reports.by_choice), reports.choices_seen) or not is_token_count(completion):
        return None
    cached = [figures.cached for figures in told if figures.cached is not None]
    reasoning = [figures.reasoning for figures in told if figures.reasoning is not None]
    flags = dict.fromkeys(flag for figures in told for flag in figures.flags)
    if len({figures.prompt for figures in told}) > 1:
        flags["prompt_conflict"] = None
    if len(set(cached)) > 1:
        flags["cached_conflict"] = None
    return _Figures(
        prompt=max(figures.prompt for figures in told),
        completion=completion,
        cached=min(cached) if cached else None,
        cache_write=max(figures.cache_write for figures in told),
        reasoning=sum(reasoning) if len(reasoning) == len(told) else None,
        flags=tuple(flags),
    )


def _figures(report: object) -> _Figures | None:
    if not isinstance(report, Mapping):
        return None
    prompt, completion = _count_or_none(report.get("prompt_tokens")), _count_or_none(report.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = _object(report.get("prompt_tokens_details"))
    cached, flags = _cached(report.get("cached_tokens"), details.get("cached_tokens"))
    write = details.get("cache_write_tokens")
    figures = _Figures(
        prompt=prompt,
        completion=completion,
        cached=cached,
        cache_write=_count_or_none(write) or 0,
        reasoning=_count_or_none(_object(report.get("completion_tokens_details")).get("reasoning_tokens")),
        flags=flags,
    )
    if write is not None and not is_token_count(write):
        figures = replace(figures, flags=(*figures.flags, "cache_write_unusable"))
    total = report.get("total_tokens")
    if is_token_count(total) and total != prompt + completion:
        figures = replace(figures, flags=(*figures.flags, "total_mismatch"))
    return figures


def _cached(top_level: object, nested: object) -> tuple[int | None, tuple[str, ...]]:
    """The cached part under its two spellings: the smaller of two, so that a discount is never invented."""
    told = [value for value in (top_level, nested) if value is not None]
    usable = [count for count in map(_count_or_none, told) if count is not None]
    flags: list[str] = []
    if len(usable) < len(told):
        flags.append("cached_unusable")
    if len(set(usable)) > 1:
        flags.append("cached_conflict")
    return min(usable, default=None), tuple(flags)


def _count_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and is_token_count(value) else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
