"""What is believed of tool calls is evidence: enough of it, of more than one caller, and not for ever."""

from __future__ import annotations

import math

import msgspec
import pytest

from gateway.core.happenings import Checked
from gateway.core.quality import Fault
from gateway.core.validity import (
    CHECKS_MIN,
    HALF_LIFE_SECONDS,
    OTHERS_MIN,
    PAIRS_MAX,
    TENANTS_MAX,
    WEIGHT_MAX,
    Standing,
    Validity,
)
from gateway.pipeline.ports import Message

NOW = 1_800_000_000.0
FAULT = Fault.SCHEMA_VIOLATED


def checked(fault: Fault | None = None, *, tenant: str = "team-a", at: float = NOW, provider: str = "p") -> Checked:
    return Checked(provider=provider, model="m", tenant=tenant, at=at, fault=fault)


def after(*happenings: Checked) -> Validity:
    validity = Validity()
    for happening in happenings:
        validity.apply(happening)
    return validity


def good(count: int, **more: str) -> list[Checked]:
    return [checked(**more)] * count


def bad(count: int, **more: str) -> list[Checked]:
    return [checked(FAULT, **more)] * count


def test_the_share_of_right_answers() -> None:
    """As it was counted, and its faults by name."""
    validity = after(*good(15), *bad(4), checked(Fault.UNKNOWN_FUNCTION))
    standing = validity.of("p", "m", NOW)
    assert standing == Standing(20.0, {FAULT: 4.0, Fault.UNKNOWN_FUNCTION: 1.0})
    assert standing.valid_share == 0.75
    assert validity.of("p", "other", NOW) == Standing(0.0, {})
    assert validity.of("p", "other", NOW).valid_share is None
    assert list(validity) == [("p", "m")]


def test_the_bound_is_wilsons() -> None:
    """Worked by hand for 75 of 100 at two sigmas: (0.75 + 2/100 + 2 sqrt(0.1875/100 + 1/100^2)) / 1.04."""
    bound = Standing(100.0, {FAULT: 25.0}).valid_share_max
    assert bound == pytest.approx((0.77 + 2 * math.sqrt(0.001975)) / 1.04, abs=1e-12)
    assert Standing(0.0, {}).valid_share_max == 1.0
    assert Standing(50.0, {}).valid_share_max == 1.0


def test_a_few_answers_prove_nothing() -> None:
    """Nineteen wrong ones do not, twenty do; and what may be chance is not held against anybody."""
    assert not after(*bad(CHECKS_MIN - 1)).is_below("p", "m", 0.95, NOW)
    assert after(*bad(CHECKS_MIN)).is_below("p", "m", 0.95, NOW)
    assert not after(*good(18), *bad(2)).is_below("p", "m", 0.95, NOW)
    assert after(*good(180), *bad(20)).is_below("p", "m", 0.95, NOW)
    assert not after(*good(180), *bad(20)).is_below("p", "m", 0.9, NOW)
    assert not Validity().is_below("p", "m", 0.95, NOW)


def test_half_is_gone_after_half_an_hour() -> None:
    """The share stays, the weight does not."""
    validity = after(*good(40), *bad(40))
    later = validity.of("p", "m", NOW + HALF_LIFE_SECONDS)
    assert later.checked == pytest.approx(40)
    assert later.valid_share == pytest.approx(0.5)


def test_who_is_passed_by_is_tried_again() -> None:
    """With no new evidence the old fades; one more wrong answer puts it out again, a longer run for longer."""
    validity = after(*bad(40))
    assert validity.is_below("p", "m", 0.95, NOW + HALF_LIFE_SECONDS - 1)
    back = NOW + HALF_LIFE_SECONDS + 1
    assert not validity.is_below("p", "m", 0.95, back)
    validity.apply(checked(FAULT, at=back))
    assert validity.is_below("p", "m", 0.95, back)
    assert not validity.is_below("p", "m", 0.95, back + 150)


def test_nobody_is_out_for_ever() -> None:
    """However long it was bad, and however busy: back after a little more than two hours."""
    validity = after(*bad(50_000))
    assert validity.of("p", "m", NOW).checked == pytest.approx(WEIGHT_MAX)
    assert validity.is_below("p", "m", 0.95, NOW + 2 * 3600)
    assert not validity.is_below("p", "m", 0.95, NOW + 2.5 * 3600)


def test_good_answers_win_it_back() -> None:
    """A provider that is only the last choice still shows that it has mended."""
    validity = after(*bad(30))
    assert validity.is_below("p", "m", 0.9, NOW)
    for _ in range(400):
        validity.apply(checked())
    assert not validity.is_below("p", "m", 0.9, NOW)


def test_one_tenant_cannot_speak_for_all() -> None:
    """Schemas that nobody could answer right put nobody out where others see it work; alone, a tenant is believed."""
    alone = bad(200, tenant="strange")
    assert after(*alone).is_below("p", "m", 0.95, NOW)
    assert after(*alone, *good(OTHERS_MIN - 1, tenant="usual")).is_below("p", "m", 0.95, NOW)
    assert not after(*alone, *good(OTHERS_MIN, tenant="usual")).is_below("p", "m", 0.95, NOW)
    assert after(*alone, *bad(OTHERS_MIN, tenant="usual")).is_below("p", "m", 0.95, NOW)


def test_what_is_heard_late_weighs_what_it_does_then() -> None:
    """Messages of other replicas come in their order, not in ours."""
    late = after(checked(), checked(FAULT, at=NOW - HALF_LIFE_SECONDS))
    assert late.of("p", "m", NOW).faults == {FAULT: pytest.approx(0.5)}
    assert late.of("p", "m", NOW - 5).checked == pytest.approx(1.5)


def test_memory_is_bounded() -> None:
    """Who is heard of last stays."""
    validity = after(*(checked(provider=f"p{number}") for number in range(PAIRS_MAX + 10)))
    assert len(list(validity)) == PAIRS_MAX
    assert ("p9", "m") not in list(validity)
    tenants = after(*(checked(tenant=f"t{number}") for number in range(TENANTS_MAX + 10)))
    assert tenants.of("p", "m", NOW).checked == TENANTS_MAX


def test_it_travels_as_a_happening() -> None:
    """Small, and the same at the other end; an unknown fault is refused there."""
    sent = msgspec.msgpack.encode(checked(FAULT))
    assert msgspec.msgpack.decode(sent, type=Message) == checked(FAULT)
    assert len(sent) < 60
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(sent.replace(b"schema_violated", b"schema_violates"), type=Message)
