"""Where a request goes and what goes with it is said by the configuration alone, by neither client nor provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.http.fake_upstream import Call, FakeUpstream, fake_upstream, json_answer
from tests.http.house import CREDENTIALS, Relay, chat
from tests.wire.transcripts import totals, whole

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

SENT = {"host", "content-type", "content-length", "accept", "accept-encoding", "authorization", "user-agent"} | {
    "x-gateway-attempt-id"
}
"""The headers of a call, all of them the gateway's own."""


@pytest.fixture
async def elsewhere(anyio_backend: str) -> AsyncIterator[FakeUpstream]:
    """A host that is in no configuration."""
    async with fake_upstream() as other:
        yield other


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(relay: Relay, elsewhere: FakeUpstream, status: int, stream: bool):
    """A provider that points elsewhere has failed: the others are tried, and nobody goes there with a credential."""

    async def script(call: Call) -> None:
        answer = json_answer({"moved": True}, status)
        await call.send(answer.replace(b"\r\n", b"\r\nlocation: %s/v1\r\n" % elsewhere.address.encode(), 1))

    relay.upstream.script = script
    answer = await relay.house.ask(chat(stream=stream))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert "location" not in answer.headers
    assert elsewhere.address not in answer.text
    assert len(relay.upstream.calls) > 1
    assert elsewhere.calls == []


async def test_a_client_names_no_address_and_no_header(relay: Relay, elsewhere: FakeUpstream):
    """Members and headers that other gateways take an address or a key from do nothing here."""

    async def script(call: Call) -> None:
        await call.send(json_answer(whole(totals(10, 5))))

    relay.upstream.script = script
    address: dict[str, Any] = dict.fromkeys(("base_url", "api_base", "api_key", "url", "proxy"), elsewhere.address)
    headers = dict.fromkeys(
        ("x_base_url", "x_api_base", "x_forwarded_host", "x_original_url", "x_upstream", "forwarded", "via", "cookie",
         "x_api_key", "openai_organization", "proxy_authorization", "x_forwarded_for", "traceparent", "referer"),
        elsewhere.address,
    )  # fmt: skip
    answer = await relay.house.ask(chat(provider={"only": ["moonshot"]}, **address), **headers)
    assert answer.status_code == 200
    assert elsewhere.calls == []
    (call,) = relay.upstream.calls
    assert set(call.headers) == SENT
    assert call.headers["authorization"] == f"Bearer {CREDENTIALS['MOONSHOT_API_KEY']}"
    assert call.head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert elsewhere.address not in call.head
