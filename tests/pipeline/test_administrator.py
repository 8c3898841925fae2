"""The bootstrap administrator is who sends the token's very bytes."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.exchange import Principal
from gateway.core.refusal import RefusedError
from gateway.pipeline.authenticate import BOOTSTRAP_ADMINISTRATOR, authenticate_administrator

TOKEN = "длинный-жетон-9f2c"


class NoKeys:
    """Knows nobody."""

    async def find(self, digest: bytes) -> Principal | None:
        return None


def who_sends(sent: bytes, token: str = TOKEN) -> Principal:
    """HTTP hands over the bytes of a header as Latin-1."""
    headers = {"authorization": "Bearer " + sent.decode("latin-1")}
    return asyncio.run(authenticate_administrator(headers, NoKeys(), token))


def test_a_token_of_any_characters():
    """A token that is not ASCII is good when it is sent as UTF-8, as every client does."""
    assert who_sends(TOKEN.encode()) is BOOTSTRAP_ADMINISTRATOR


@pytest.mark.parametrize("sent", [TOKEN.encode()[:-1], TOKEN.encode("utf-16"), b"\xff", TOKEN.encode("koi8-r")])
def test_other_bytes(sent: bytes):
    """Anything else is nobody's, and never an error of ours."""
    with pytest.raises(RefusedError):
        who_sends(sent)


def test_text_that_no_header_can_be():
    """Not even text beyond Latin-1 breaks the comparison, or equals a token."""
    with pytest.raises(RefusedError):
        asyncio.run(authenticate_administrator({"x-api-key": TOKEN}, NoKeys(), "?" * 7 + TOKEN))
