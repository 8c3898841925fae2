"""What a fingerprint costs beside its limits, and how near its token counts come: `python -m bench.fingerprint`.

Times are CPU time of one thread, the least of many rounds. The errors are over generated conversations that grow turn
by turn, one API key for each kind, against Kimi's own tokenizer; without its file that half is left out.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import xxhash
from rich.console import Console
from rich.table import Table

from bench.kimi_tokens import RANKS, KimiTokens
from gateway.core.estimate import Calibration
from gateway.core.prefix import Fingerprint, prompt_of
from gateway.pipeline.experience import Experience
from gateway.surfaces.bodies import open_body
from gateway.surfaces.chat_completions import parse
from gateway.surfaces.conversation import read_conversation
from gateway.surfaces.fingerprint import fingerprint_of

MODEL: Final = "kimi-k2-thinking"
LIMIT_MICROSECONDS: Final = 1_000
"""For a body of a megabyte, apart from parsing it."""
ENGLISH: Final = "It was a bright cold day in the harbour, and the clocks were striking. "
CHINESE: Final = "天空是蓝色的，因为阳光在大气中被散射。"

Messages = list[dict[str, Any]]


# -- time --------------------------------------------------------------------------------------------------------------


def _body(messages: Messages, *, escaped: bool = False) -> bytes:
    return json.dumps({"model": MODEL, "max_tokens": 1_024, "messages": messages}, ensure_ascii=escaped).encode()


def _chat(count: int, text: str) -> Messages:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index in range(count)]


def _steps(count: int) -> Messages:
    """An agent's: reasoning and a call, and what the tool said."""
    call = {"id": "run:0", "type": "function", "function": {"name": "run", "arguments": json.dumps({"at": ENGLISH})}}
    calling = {"role": "assistant", "content": None, "reasoning_content": ENGLISH * 40, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "run:0", "content": json.dumps({"lines": [ENGLISH] * 130})}
    return [{"role": "user", "content": "Mend it."}, *[calling, result] * (count // 2)]


BODIES: Final = {
    "1 kB, 2 messages": _body([{"role": "system", "content": "You are terse."}, *_chat(1, ENGLISH * 13)]),
    "1 MB in 154 messages": _body(_chat(154, ENGLISH * 91)),
    "1 MB in one message": _body(_chat(1, ENGLISH * 14_000)),
    "1 MB in 10,000 messages": _body(_chat(10_000, ENGLISH[:62])),
    "1 MB in 154 messages of an agent": _body(_steps(154)),
    "1 MB of Chinese": _body(_chat(154, CHINESE * 114)),
    "1 MB of Chinese as escapes": _body(_chat(154, CHINESE * 57), escaped=True),
}


def _least(of: Callable[[], object], rounds: int) -> float:
    """Microseconds of CPU."""
    best = float("inf")
    for _ in range(rounds):
        before = time.thread_time_ns()
        of()
        best = min(best, time.thread_time_ns() - before)
    return best / 1_000


def time_rows(rounds: int) -> list[dict[str, Any]]:
    """Per body: the fingerprint alone, the whole of ``parse`` with it, and the hashes over the same bytes."""
    rows = []
    for name, body in BODIES.items():
        messages = open_body(body)["messages"]
        conversation = read_conversation(messages)
        size = conversation.input_bytes(messages)
        alone = partial(fingerprint_of, conversation, None, tools_bytes=0, messages_bytes=size, seed=7)
        row: dict[str, Any] = {"body": name, "bytes": len(body), "fingerprint_us": _least(alone, rounds)}
        row["parse_us"] = _least(partial(parse, body, headers={}), rounds)
        row["xxh3_64_us"] = _least(lambda body=body: xxhash.xxh3_64_intdigest(body), rounds)  # type: ignore[misc]
        row["blake2b_us"] = _least(lambda body=body: hashlib.blake2b(body, digest_size=8).digest(), rounds)  # type: ignore[misc]
        row["limit_us"] = LIMIT_MICROSECONDS if len(body) > 100_000 else None
        rows.append(row)
    return rows


def print_times(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="CPU microseconds per body", title_justify="left")
    table.add_column("body")
    for title in ("bytes", "fingerprint", "limit", "", "parse with it", "xxh3_64", "blake2b"):
        table.add_column(title, justify="right")
    for row in rows:
        limit = row["limit_us"]
        verdict = "" if limit is None else "ok" if row["fingerprint_us"] <= limit else "over"
        figures = [f"{row[name]:,.0f}" for name in ("parse_us", "xxh3_64_us", "blake2b_us")]
        known = "–" if limit is None else f"{limit:,}"
        table.add_row(row["body"], f"{row['bytes']:,}", f"{row['fingerprint_us']:,.1f}", known, verdict, *figures)
    console.print(table)


# -- tokens ------------------------------------------------------------------------------------------------------------

CLAUSES: Final = (
    "今天要检查系统的状态", "并且更新数据库中的所有记录", "如果发现错误", "请立即报告给管理员", "因为这个问题",
    "可能影响用户体验", "订单已经发货", "预计明天到达北京", "上海天气很好", "适合出门散步", "学习语言是一个长期过程",
)  # fmt: skip
SOURCES: Final = ("argparse.py", "datetime.py", "json/decoder.py", "tarfile.py", "typing.py", "email/message.py")


class Texts:
    """Texts of each kind, cut from what every Python brings; the same for the same seed."""

    def __init__(self, chance: random.Random) -> None:
        library = Path(json.__file__).parents[1]
        self.chance = chance
        self._code = "\n".join((library / name).read_text() for name in SOURCES)
        self._prose = "\n".join(p.read_text() for p in sorted((Path(__file__).parents[1] / "docs").rglob("*.md")))

    def cut(self, text: str, low: int, high: int) -> str:
        size = self.chance.randint(low, high)
        start = self.chance.randrange(max(1, len(text) - size))
        return text[start : start + size]

    def code(self, low: int, high: int) -> str:
        return self.cut(self._code, low, high)

    def english(self, low: int, high: int) -> str:
        return self.cut(self._prose, low, high)

    def chinese(self, low: int, high: int) -> str:
        clauses = [self.chance.choice(CLAUSES) for _ in range(1 + self.chance.randint(low, high) // 10)]
        return "，".join(clauses) + "。"

    def records(self, low: int, high: int) -> str:
        count = max(1, self.chance.randint(low, high) // 90)
        random_ = self.chance.random
        rows = [
            {
                "id": f"{int(random_() * 1e9):x}",
                "price": round(random_() * 500, 2),
                "ok": random_() < 0.5,
                "name": self.cut(self._prose, 8, 20),
            }
            for _ in range(count)
        ]
        return json.dumps(rows)


def _tools(texts: Texts) -> list[dict[str, Any]]:
    properties = {"path": {"type": "string", "description": texts.english(40, 120)}, "limit": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["path"]}
    return [
        {"type": "function", "function": {"name": name, "description": texts.english(100, 500), "parameters": schema}}
        for name in ("read_file", "search", "run_command", "list_orders")
    ]


KINDS: Final[dict[str, tuple[Callable[..., str], Callable[..., str], bool]]] = {
    "agent reading code": (Texts.english, Texts.code, True),
    "agent reading JSON": (Texts.english, Texts.records, True),
    "agent in Chinese": (Texts.chinese, Texts.records, True),
    "chat in English": (Texts.english, Texts.english, False),
    "chat in Chinese": (Texts.chinese, Texts.chinese, False),
    "code and Chinese": (Texts.chinese, Texts.code, False),
}


def conversations(count: int, seed: int) -> Iterator[tuple[str, list[dict[str, Any]], Iterator[Messages]]]:
    """Kind, tools, and the messages of one turn after the other; the kinds take turns."""
    chance = random.Random(seed)
    texts = Texts(chance)
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        yield kind, _tools(texts) if KINDS[kind][2] else [], _turns(kind, texts, chance.randint(3, 16))


def _turns(kind: str, texts: Texts, turns: int) -> Iterator[Messages]:
    say, show, is_agent = KINDS[kind]
    messages: Messages = [
        {"role": "system", "content": say(texts, 200, 3_000)},
        {"role": "user", "content": say(texts, 30, 900)},
    ]
    for turn in range(turns):
        yield messages
        if is_agent:
            ids = [f"functions.search:{turn}{call}" for call in range(texts.chance.choice((1, 1, 1, 2, 9)))]
            arguments = json.dumps({"path": texts.english(10, 60), "limit": 5})
            calls = [
                {"id": each, "type": "function", "function": {"name": "search", "arguments": arguments}} for each in ids
            ]
            messages = [
                *messages,
                {"role": "assistant", "content": "", "reasoning_content": say(texts, 50, 800), "tool_calls": calls},
            ]
            messages += [{"role": "tool", "tool_call_id": each, "content": show(texts, 100, 6_000)} for each in ids]
        else:
            messages = [
                *messages,
                {"role": "assistant", "content": show(texts, 200, 4_000)},
                {"role": "user", "content": say(texts, 20, 400)},
            ]


def true_tokens(tokens: KimiTokens, tools: list[dict[str, Any]], messages: Messages) -> int:
    """As the chat template writes them: marks and role of a message are five tokens, those of a call four."""
    total = 3 + (5 + tokens.count(json.dumps(tools, separators=(",", ":"))) if tools else 0)
    for message in messages:
        total += 5 + tokens.count(message.get("reasoning_content", "")) + tokens.count(message["content"])
        for call in message.get("tool_calls", ()):
            total += 4 + tokens.count(call["id"]) + tokens.count(call["function"]["arguments"])
    return total


class Trial:
    """One gateway's learning over all conversations, the errors it made on the way, and what it has to remember."""

    def __init__(self) -> None:
        self.whole = Calibration()
        self.experience = Experience()
        self.told: dict[int, int] = {}
        self.remembered: set[int] = set()
        self.errors: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.requests = self.turns = self.found = self.written = 0

    def turn(self, kind: str, found: Fingerprint, true: int, *, is_first: bool) -> None:
        size = found.size_bytes
        places = [place for place, digest in enumerate(found.digests) if digest in self.told]
        anchor = (places[-1], self.told[found.digests[places[-1]]]) if places else None
        by_key = partial(self.experience.input_tokens, MODEL, key_id=kind)
        prompt = prompt_of(found, anchor=anchor, tokens_of_bytes=by_key)
        estimates = {
            "model's ratio": self.whole.tokens(size),
            "key's ratio": by_key(size),
            "anchored, key's ratio after": prompt.input_tokens,
        }
        for name, estimate in estimates.items():
            for group in (kind, "all", *(() if is_first else ("all later turns",))):
                self.errors[group][name].append(abs(estimate - true) / true)
        digests, _ = prompt.remembered()
        self.remembered.update(digests)
        self.written += len(digests)
        self.requests += 1
        self.turns += not is_first
        self.found += not is_first and anchor is not None
        self.told[found.digests[-1]] = true
        self.whole = self.whole.learn(size, true)
        self.experience.learn(MODEL, key_id=kind, input_bytes=size, input_tokens=true, output_bytes=0, output_tokens=0)


def run_trial(tokens: KimiTokens, *, count: int, seed: int) -> Trial:
    trial = Trial()
    for kind, tools, turns in conversations(count, seed):
        for turn, messages in enumerate(turns):
            members = {"model": MODEL, "messages": messages} | ({"tools": tools} if tools else {})
            found = parse(json.dumps(members, ensure_ascii=bool(seed % 2)).encode(), headers={}, seed=seed).fingerprint
            true = true_tokens(tokens, tools, messages)
            trial.turn(kind, found, true, is_first=turn == 0)
    return trial


def error_rows(trial: Trial) -> list[dict[str, Any]]:
    rows = []
    for kind, by_name in trial.errors.items():
        for name, errors in by_name.items():
            ranked = sorted(errors)
            at = {f"p{share}": ranked[min(len(ranked) - 1, len(ranked) * share // 100)] for share in (50, 90, 99)}
            rows.append({"kind": kind, "estimate": name, "requests": len(ranked), **at})
    return rows


def print_errors(rows: Sequence[dict[str, Any]], trial: Trial, console: Console) -> None:
    table = Table(title="Error of a prompt's tokens: p50 / p90 / p99, %", title_justify="left")
    names = list(dict.fromkeys(row["estimate"] for row in rows))
    for column, title in enumerate(("kind", "requests", *names)):
        table.add_column(title, justify="right" if column else "left")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        cells = [" / ".join(f"{row[at] * 100:.1f}" for at in ("p50", "p90", "p99")) for row in own]
        table.add_row(kind, str(own[0]["requests"]), *cells)
    console.print(table)
    console.print(
        f"The prompt before was found by {trial.found} of {trial.turns} later turns; its tokens are exact then. "
        f"Boundaries remembered per request: {trial.written / trial.requests:.1f}, of which new: "
        f"{len(trial.remembered) / trial.requests:.1f}."
    )


@click.command()
@click.option("--rounds", default=60, show_default=True, help="Rounds of each measurement of time.")
@click.option("--conversations", "count", default=120, show_default=True, help="Conversations to estimate.")
@click.option("--seed", default=1, show_default=True, help="What the conversations are drawn by; odd: with escapes.")
@click.option("--json", "as_json", is_flag=True, help="Figures as JSON.")
def main(*, rounds: int, count: int, seed: int, as_json: bool) -> None:
    """Time and accuracy of fingerprints."""
    console = Console() if Console().is_terminal else Console(width=140)
    gc.freeze()
    times = time_rows(rounds)
    trial = run_trial(KimiTokens(RANKS), count=count, seed=seed) if RANKS.exists() else None
    errors = error_rows(trial) if trial else []
    if as_json:
        print(json.dumps({"times": times, "errors": errors}))
    else:
        print_times(times, console)
        if trial:
            print_errors(errors, trial, console)
        else:
            console.print(f"Token counts are not compared: there is no tokenizer at {RANKS}.")
    sys.exit(any(row["limit_us"] and row["fingerprint_us"] > row["limit_us"] for row in times))


if __name__ == "__main__":
    main()
