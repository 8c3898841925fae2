"""What a provider states can be laid beside the ledger: by the request id that the response told, line by line."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from gateway.simulator import PROVIDERS
from tests.http.house import chat, eventually, open_house

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

REQUESTS = 4
COLUMNS = {
    "moonshot": ("Request ID", "Prompt Tokens", "Completion Tokens", "Amount (USD)", Decimal(1)),
    "cometapi": ("request_id", "prompt_tokens", "completion_tokens", "quota", Decimal("0.000002")),
    "evolink": ("request_id", "usage.prompt_tokens", "usage.completion_tokens", "credits", Decimal(1)),
}


async def test_a_statement_has_the_ledgers_request_ids_tokens_and_amounts(database_url: str, tmp_path: Path):
    """Of all three, streamed and whole: the same ids, the same tokens, and no amount farther off than its rounding."""
    async with open_house(database_url, tmp_path) as house, httpx.AsyncClient(trust_env=False) as console:
        for number in range(REQUESTS):
            for provider in PROVIDERS:
                body = chat(f"{'Again. ' * 90}[[out={20 + 3 * number}]]", stream=number % 2 == 0)
                answer = await house.ask(body | {"provider": {"only": [provider]}})
                assert answer.status_code == 200
        await eventually(lambda: not house.gateway.services.exchanges)
        ledger = {row["upstream_request_id"]: row for row in await house.ledger()}
        assert len(ledger) == REQUESTS * len(PROVIDERS)
        for provider, (request_id, prompt, output, amount, worth) in COLUMNS.items():
            answer = await console.get(f"{house.addresses[provider]}/__sim/statement", params={"format": "csv"})
            lines = list(csv.DictReader(io.StringIO(answer.text)))
            assert len(lines) == REQUESTS
            for line in lines:
                row = ledger.pop(line[request_id])
                assert row["provider"] == provider
                assert (int(line[prompt]), int(line[output])) == (row["input_tokens"], row["output_tokens"])
                half = worth.scaleb(int(Decimal(line[amount]).as_tuple().exponent)) / 2
                assert abs(Decimal(line[amount]) * worth - Decimal(row["cost"])) <= half
        assert not ledger
