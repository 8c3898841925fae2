"""What is left on an account, as each provider tells it: exact decimals, or a ValueError (providers §1.2 to §3.3)."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from gateway.providers import DIALECTS, dialect
from gateway.providers.dialect import Balance

MOONSHOT = b"""{"code":0,"data":{"available_balance":49.58894,"voucher_balance":46.58893,"cash_balance":3.00001},
 "scode":"0x0","status":true}"""
COMETAPI = b"""{"username":"a","total_quota":12.3,"total_used_quota":0.1,"request_count":7,
 "keys":[{"name":"k","remain_quota":-1,"used_quota":0.1}],"daily_quota":[]}"""


def evolink(*, token: float, user: float, unlimited: bool = False, success: bool = True) -> bytes:
    data = {
        "token": {"remaining_credits": token, "used_credits": 1, "unlimited_credits": unlimited},
        "user": {"remaining_credits": user, "used_credits": 2.5},
    }
    return json.dumps({"success": success, "message": "no such token", "data": data}).encode()


@pytest.mark.parametrize(
    ("name", "body", "balance"),
    [
        pytest.param("moonshot", MOONSHOT, Balance(available=Decimal("49.58894"), unit="USD"), id="moonshot"),
        pytest.param(
            "moonshot",
            b'{"code":0,"data":{"available_balance":-3},"status":true}',
            Balance(available=Decimal(-3), unit="USD"),
            id="moonshot in debt",
        ),
        pytest.param(
            "cometapi",
            COMETAPI,
            Balance(available=Decimal("12.3"), unit="USD", used=Decimal("0.1")),
            id="cometapi",
        ),
        pytest.param(
            "evolink",
            evolink(token=3.25, user=10),
            Balance(available=Decimal("3.25"), unit="credits", used=Decimal("2.5")),
            id="evolink: the key's share is smaller",
        ),
        pytest.param(
            "evolink",
            evolink(token=0, user=10, unlimited=True),
            Balance(available=Decimal(10), unit="credits", used=Decimal("2.5")),
            id="evolink: a key without a share",
        ),
    ],
)
def test_a_balance_is_exact(name: str, body: bytes, balance: Balance) -> None:
    """No float on the way from the wire."""
    assert dialect(name).read_balance(body) == balance


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"<html>",
        b"\xff",
        b'{"a":' * 100_000,
        b'{"code":5,"message":"no","status":false}',
        b'{"status":true,"data":null}',
        b'{"status":true,"success":true,"data":{"available_balance":true}}',
        b'{"status":true,"success":true,"data":{"available_balance":"5"},"total_quota":"5"}',
        b'{"status":true,"data":{"available_balance":NaN},"total_quota":Infinity}',
        evolink(token=1, user=1, success=False),
    ],
)
@pytest.mark.parametrize("name", DIALECTS)
def test_any_other_shape_is_a_value_error(name: str, body: bytes) -> None:
    """A balance that cannot be read is not zero, and not a crash."""
    with pytest.raises(ValueError, match=r".+"):
        dialect(name).read_balance(body)


@pytest.mark.parametrize(
    ("name", "base_url", "url"),
    [
        ("moonshot", "https://api.moonshot.ai/v1", "https://api.moonshot.ai/v1/users/me/balance"),
        ("moonshot", "https://api.moonshot.cn/v1/", "https://api.moonshot.cn/v1/users/me/balance"),
        ("evolink", "https://direct.evolink.ai/v1", "https://api.evolink.ai/v1/credits"),
        ("evolink", "http://127.0.0.1:9003/v1", "http://127.0.0.1:9003/v1/credits"),
        ("cometapi", "https://api.cometapi.com/v1", None),
        ("openai", "http://127.0.0.1:8000/v1", None),
    ],
)
def test_where_a_balance_is_read(name: str, base_url: str, url: str | None) -> None:
    """CometAPI's carries the key in the URL, so nobody asks unless an operator says so."""
    assert dialect(name).balance_url(base_url) == url


def test_every_dialect_is_whole() -> None:
    """Listed under its own name, with somewhere to look for the provider's request id."""
    assert set(DIALECTS) == {"moonshot", "cometapi", "evolink", "openai"}
    for name, known in DIALECTS.items():
        assert dialect(name) is known
        assert known.name == name
        assert known.request_id_headers
        assert all(header == header.lower() for header in known.request_id_headers)
