"""A plan, worked by hand: who is out and why, and in which order the others would be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.core.catalogue import Catalogue, Model, RoutingTerms
from gateway.core.estimate import AnswerLength
from gateway.core.exchange import (
    Candidate,
    CandidateState,
    Exclusion,
    InferenceRequest,
    Plan,
    Principal,
    ProviderPreferences,
    Sort,
    Surface,
)
from gateway.core.failure import Failure, FailureClass
from gateway.core.happenings import Checked
from gateway.core.health import WELL, WHY, Health, Subject, after_failure, after_free_probe, claim_probe
from gateway.core.load import Pace
from gateway.core.prefix import FIRST_TURN, Prompt
from gateway.core.quality import Fault
from gateway.core.routing import Circumstances, plan, retry_after_seconds, subjects
from gateway.core.validity import Validity
from tests.paces import paced
from tests.pipeline.virtual_time import START
from tests.pipeline.world import ALICE, MODEL, card, catalogue, configuration, deployment, price

CATALOGUE = catalogue(card("evolink"), card("moonshot", accounts=("b", "a")), card("cometapi"))

PROMPT = Prompt(digests=(1,), tokens=(500,))


def planned(
    *,
    in_force: Catalogue = CATALOGUE,
    principal: Principal = ALICE,
    health: Mapping[Subject, Health] | None = None,
    pace: Mapping[tuple[str, str], Pace] | None = None,
    usable: frozenset[tuple[str, str]] | None = None,
    output_limit: int = 1_000,
    seconds: float = 0,
    validity: Validity | None = None,
    **request: Any,
) -> Plan:
    asked = InferenceRequest(surface=Surface.CHAT_COMPLETIONS, model=MODEL, model_asked=MODEL, fields={}, **request)
    return plan(
        asked,
        principal,
        Circumstances(
            catalogue=in_force,
            health_of=lambda subject: (health or {}).get(subject, WELL),
            usable_accounts=configuration(in_force).usable_accounts if usable is None else usable,
            answer_length=AnswerLength(),
            beliefs=paced(pace or {}),
            now=START + timedelta(seconds=seconds),
            validity=validity or Validity(),
        ),
        model=Model(name=MODEL),
        prompt=PROMPT,
        turn=FIRST_TURN,
        output_limit_of=lambda _: output_limit,
    )


def names(made: Plan) -> list[str]:
    return [f"{candidate.provider}/{candidate.account}" for candidate in made.routable]


def one(made: Plan, provider: str, account: str = "main") -> Candidate:
    (found,) = (each for each in made.candidates if (each.provider, each.account) == (provider, account))
    return found


def out(kind: FailureClass, *, times: int = 1) -> Health:
    health = WELL
    for _ in range(times):
        health = after_failure(health, Failure(kind=kind, message=""), START, began=START, jitter=0)
    return health


def test_the_cheapest_goes_first_and_names_break_ties() -> None:
    """500 x input + 1,000 x output: 2.50 < 2.80 = 2.80 < 4.95 thousandths of a dollar."""
    made = planned()
    assert names(made) == ["evolink/main", "moonshot/a", "moonshot/b", "cometapi/main"]
    assert [str(each.expected_cost) for each in made.routable] == ["0.0025", "0.0028", "0.0028", "0.00495"]
    assert made.input_tokens_estimate == 500
    assert made.made_at == START


def test_the_expected_answer_is_within_its_limit() -> None:
    """A limit of ten tokens, and two answers of them: 500 x 0.556 + 20 x 2.222 per million."""
    made = planned(output_limit=10, n=2)
    assert str(one(made, "evolink").expected_cost) == "0.00032244"
    assert one(made, "evolink").output_limit == 10


def test_what_is_out_comes_last_by_name() -> None:
    """Excluded candidates keep their price and cost, and say why they are out."""
    made = planned(preferences=ProviderPreferences(ignore=frozenset({"moonshot", "evolink"})))
    assert [(each.provider, each.account) for each in made.candidates] == [
        ("cometapi", "main"),
        ("evolink", "main"),
        ("moonshot", "a"),
        ("moonshot", "b"),
    ]
    assert one(made, "evolink").excluded == "in provider.ignore"
    assert one(made, "evolink").expected_cost is not None


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"principal": replace(ALICE, providers=frozenset({"moonshot"}))}, Exclusion.RIGHTS, "may not use evolink"),
        ({"preferences": ProviderPreferences(only=frozenset({"moonshot"}))}, Exclusion.PREFERENCE, "provider.only"),
        (
            {"preferences": ProviderPreferences(max_prompt=price("x", usd=("0.5", None, "0.5")).input)},
            Exclusion.PREFERENCE,
            "$0.556 per 1M",
        ),
        (
            {"preferences": ProviderPreferences(max_completion=price("x", usd=("0.5", None, "2")).output)},
            Exclusion.PREFERENCE,
            "$2.222 per 1M",
        ),
        ({"usable": frozenset({("moonshot", "a")})}, Exclusion.NO_CREDENTIAL, "no credential"),
        ({"needs": frozenset({"images"})}, Exclusion.CAPABILITY, "does not support images"),
        ({"output_limit": 1, "needs": frozenset({"tools", "logprobs"})}, Exclusion.CAPABILITY, "logprobs"),
    ],
    ids=["rights", "only", "prompt price", "completion price", "credential", "capability", "one of two"],
)
def test_why_a_candidate_is_out(asked: dict[str, Any], kind: Exclusion, words: str) -> None:
    """Each with its kind and its words."""
    candidate = one(planned(**asked), "evolink")
    assert candidate.exclusion is kind
    assert words in (candidate.excluded or "")
    assert candidate.state is CandidateState.UNROUTABLE


def test_the_card_may_speak_against_it() -> None:
    """Not priced, over, still to come, too short an answer, too short a context."""
    day = timedelta(days=1)
    cards = {
        "a": card("a"),
        "b": card("b", deployments={MODEL: deployment("b", available_until=START.date())}),
        "c": card("c", deployments={MODEL: deployment("c", available_from=START.date() + day)}),
        "d": card("d", deployments={MODEL: deployment("d", max_output=99)}),
        "e": card("e", deployments={MODEL: deployment("e", context=574)}),
        "f": card("f", deployments={MODEL: deployment("f", context=575)}),
    }
    made = planned(
        in_force=catalogue(*cards.values(), prices=tuple(price(name) for name in "bcdef")),
    )
    assert names(made) == ["d/main", "e/main", "f/main"]
    limited = replace(CATALOGUE, providers={**cards}, prices=catalogue(*cards.values()).prices)
    made = plan(
        InferenceRequest(surface=Surface.CHAT_COMPLETIONS, model=MODEL, model_asked=MODEL, fields={}, output_limit=100),
        ALICE,
        Circumstances(
            catalogue=limited,
            health_of=lambda _: WELL,
            usable_accounts=configuration(limited).usable_accounts,
            answer_length=AnswerLength(),
            now=START,
        ),
        model=Model(name=MODEL),
        prompt=PROMPT,
        turn=FIRST_TURN,
        output_limit_of=lambda _: 100,
    )
    assert names(made) == ["a/main", "f/main"]
    assert {each.provider: each.exclusion for each in made.candidates if each.excluded} == {
        "b": Exclusion.RETIRED,
        "c": Exclusion.RETIRED,
        "d": Exclusion.CAPABILITY,
        "e": Exclusion.CONTEXT,
    }
    assert one(made, "b").excluded == "retired here on 2026-03-01"
    assert one(made, "c").excluded == "not available here before 2026-03-02"


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (ProviderPreferences(order=("cometapi", "moonshot")), ["cometapi", "moonshot", "moonshot", "evolink"]),
        (ProviderPreferences(order=("Moonshot",), allow_fallbacks=False), ["moonshot", "moonshot"]),
        (ProviderPreferences(order=("cometapi", "moonshot"), allow_fallbacks=False), ["cometapi"] + ["moonshot"] * 2),
        (ProviderPreferences(allow_fallbacks=False), ["evolink"]),
        (ProviderPreferences(allow_fallbacks=False, ignore=frozenset({"evolink"})), ["moonshot", "moonshot"]),
        (ProviderPreferences(sort=Sort.LATENCY), ["moonshot", "cometapi", "evolink", "moonshot"]),
        (ProviderPreferences(sort=Sort.THROUGHPUT), ["moonshot", "evolink", "cometapi", "moonshot"]),
        (ProviderPreferences(sort=Sort.PRICE), ["evolink", "moonshot", "moonshot", "cometapi"]),
    ],
    ids=["order", "order only", "two only", "first only", "first of the rest", "latency", "throughput", "price"],
)
def test_preferences_order_what_is_left(wanted: ProviderPreferences, order: list[str]) -> None:
    """An account of which no pace is known yet is tried first, or it would stay unknown."""
    pace = {
        ("evolink", "main"): Pace(first_chunk_seconds=2.0, tokens_per_second=90.0),
        ("cometapi", "main"): Pace(first_chunk_seconds=1.0, tokens_per_second=40.0),
        ("moonshot", "b"): Pace(first_chunk_seconds=9.0, tokens_per_second=10.0),
    }
    assert [each.provider for each in planned(preferences=wanted, pace=pace).routable] == order


@pytest.mark.parametrize(
    ("subject", "health", "state", "kind", "words"),
    [
        (
            Subject("evolink", "main", None), out(FailureClass.QUOTA), CandidateState.COOLING, Exclusion.COOLING,
            "the account has no money left; out until 12:05:00Z",
        ),
        (
            Subject("evolink", None, MODEL), out(FailureClass.MODEL_GONE), CandidateState.EJECTED, Exclusion.GONE,
            f"{WHY[FailureClass.MODEL_GONE]}; out until the provider lists it, and until 12:10:00Z at least",
        ),
        (
            Subject("evolink", "main", MODEL), out(FailureClass.BROKEN, times=5), CandidateState.EJECTED,
            Exclusion.EJECTED, "the provider's answers break off; out until 12:00:03Z",
        ),
    ],
    ids=["account", "model", "circuit"],
)  # fmt: skip
def test_who_is_unwell_is_out_until_a_moment(
    subject: Subject, health: Health, state: CandidateState, kind: Exclusion, words: str
) -> None:
    """With the moment, which is also what ``retry-after`` is made of; after it, one probe, if it is listed."""
    candidate = one(planned(health={subject: health}), "evolink")
    assert (candidate.state, candidate.exclusion, candidate.excluded) == (state, kind, words)
    assert candidate.retry_at == health.out_until
    health = after_free_probe(health, START, ok=True)
    assert one(planned(health={subject: health}, seconds=601), "evolink").state is CandidateState.PROBING
    probing = claim_probe(health, START + timedelta(seconds=601))
    again = one(planned(health={subject: probing}, seconds=602), "evolink")
    assert "a probe is under way" in (again.excluded or "")
    assert again.retry_at == probing.probe_until


def test_the_last_open_circuit_is_routable() -> None:
    """When nothing else is, and only circuits: not an account without money, not a model that is gone."""
    ill = {
        Subject("evolink", "main", MODEL): out(FailureClass.BROKEN, times=5),
        Subject("moonshot", "a", None): out(FailureClass.QUOTA),
        Subject("moonshot", "b", None): out(FailureClass.CREDENTIAL),
        Subject("cometapi", None, MODEL): out(FailureClass.MODEL_GONE),
    }
    made = planned(health=ill)
    assert names(made) == ["evolink/main"]
    assert one(made, "evolink").state is CandidateState.EJECTED
    well = planned(health={subject: health for subject, health in ill.items() if subject.provider != "cometapi"})
    assert names(well) == ["cometapi/main"]


def test_the_soonest_return_is_the_time_to_wait() -> None:
    """At least one second; half a minute where nothing is known to come back."""
    ill = {
        Subject("evolink", None, MODEL): out(FailureClass.MODEL_GONE),
        Subject("moonshot", "a", None): out(FailureClass.QUOTA),
        Subject("moonshot", "b", None): out(FailureClass.CREDENTIAL),
        Subject("cometapi", "main", None): out(FailureClass.QUOTA),
    }
    assert retry_after_seconds(planned(health=ill)) == 300
    assert retry_after_seconds(planned(health=ill, seconds=299.5)) == 1
    assert retry_after_seconds(planned(principal=replace(ALICE, providers=frozenset()))) == 30


def test_three_must_be_well() -> None:
    """The account, the model there, and the circuit of both."""
    assert subjects(one(planned(), "moonshot", "a")) == (
        Subject("moonshot", "a", None),
        Subject("moonshot", None, MODEL),
        Subject("moonshot", "a", MODEL),
    )


GATED = replace(CATALOGUE, routing=RoutingTerms(min_tool_call_validity=0.95))
TOOLS = frozenset({"tools"})


def wrong_at(*providers: str) -> Validity:
    """Thirty wrong tool-call answers in a row at each of these."""
    validity = Validity()
    for provider in providers * 30:
        at = START.timestamp()
        validity.apply(Checked(provider=provider, model=MODEL, tenant="team-a", at=at, fault=Fault.ARGUMENTS_NOT_JSON))
    return validity


def test_where_tool_calls_are_wrong_requests_with_tools_go_elsewhere() -> None:
    """The reason says how many were right; requests without tools do not mind, nor does who sets no minimum."""
    wrong = wrong_at("evolink")
    made = planned(in_force=GATED, validity=wrong, needs=TOOLS)
    assert names(made) == ["moonshot/a", "moonshot/b", "cometapi/main"]
    passed_by = one(made, "evolink")
    assert passed_by.exclusion is Exclusion.INVALID_TOOL_CALLS
    assert passed_by.state is CandidateState.EJECTED
    assert passed_by.excluded == "0.0% of its tool-call answers were right of late, below min_tool_call_validity 0.95"
    assert names(planned(in_force=GATED, validity=wrong))[0] == "evolink/main"
    assert names(planned(validity=wrong, needs=TOOLS))[0] == "evolink/main"


def test_the_last_one_is_never_passed_by_for_its_tool_calls() -> None:
    """With nobody better it is tried; it goes before an open circuit, which answers nothing at all."""
    everywhere = wrong_at("evolink", "moonshot", "cometapi")
    assert len(names(planned(in_force=GATED, validity=everywhere, needs=TOOLS))) == 4
    opened = {
        Subject(provider, account, MODEL): out(FailureClass.TRANSIENT, times=5)
        for provider, account in (("moonshot", "a"), ("moonshot", "b"), ("cometapi", "main"))
    }
    made = planned(in_force=GATED, validity=wrong_at("evolink"), health=opened, needs=TOOLS)
    assert names(made) == ["evolink/main"]
    assert one(made, "moonshot", "a").exclusion is Exclusion.EJECTED


def test_who_is_ill_is_out_for_its_illness() -> None:
    """Of two reasons the graver one is given."""
    gone = {Subject("evolink", None, MODEL): out(FailureClass.MODEL_GONE)}
    made = planned(in_force=GATED, validity=wrong_at("evolink"), health=gone, needs=TOOLS)
    assert one(made, "evolink").exclusion is Exclusion.GONE
