"""One attempt: the upstream is called once, its answer relayed or held, and how that ended is a value.

Nothing is settled here and nothing decided about a next attempt. Bytes pass through as they came; usage is read in
passing. What must not leave before the settlement is durable is handed back as ``held``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.core.catalogue import OnModelMismatch, ProviderCard
from gateway.core.exchange import Attempt, AttemptStatus, InferenceRequest, Observation
from gateway.core.failure import Failure, FailureClass
from gateway.core.ledger import MODEL_MISMATCH_FLAG, Progress
from gateway.core.load import Pace
from gateway.core.quality import Fault, Judgement, is_quoted, judge
from gateway.core.sse import Event, EventTooLongError, SseScanner
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from gateway.pipeline.experience import Experience
from gateway.pipeline.outcome import DONE, Outcome
from gateway.pipeline.ports import (
    Clock,
    Journal,
    MeteringUnavailableError,
    Telemetry,
    UpstreamAnswer,
    UpstreamCall,
    UpstreamFailedError,
    Upstreams,
)
from gateway.pipeline.watch import ClientGone, Interrupted, Watch
from gateway.providers.dialect import Dialect
from gateway.providers.reading import AnswerReader, EventKind

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
ERROR_BYTES_MAX: Final = 1024 * 1024
PREAMBLE_BYTES_MAX: Final = 64 * 1024
"""Events without content are held back up to here, so that a provider which says hello and dies can be failed over."""
PROGRESS_SECONDS: Final = 1.0


Relay = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Sight:
    """What has been seen of one upstream answer so far; grows while the attempt runs, frozen into its outcome."""

    reader: AnswerReader = field(default_factory=AnswerReader)
    seen: Observation = field(default_factory=Observation)
    choices_asked: int = 1
    sent: bool = False
    streamed: bool = False
    whole_bytes: int = 0
    relayed: int = 0
    held: bytes = b""
    closing: bytes | None = None
    done: bytes = DONE
    body: bytes | None = None
    progress_at: float = 0.0
    error: bytes | None = None
    malformed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempting:
    """What every attempt needs of the world."""

    upstreams: Upstreams
    journal: Journal
    clock: Clock
    experience: Experience
    pace: Mapping[tuple[str, str], Pace]
    telemetry: Telemetry


async def attempt(
    needs: Attempting,
    this: Attempt,
    request: InferenceRequest,
    card: ProviderCard,
    dialect: Dialect,
    call: UpstreamCall,
    watch: Watch,
    relay: Relay,
) -> Outcome:
    """Calls the upstream once. Every end is an outcome, a defect of ours included."""
    sight = Sight(reader=AnswerReader(keeps_calls="tools" in request.needs), choices_asked=request.n)
    failure: Failure | None = None
    aborted = False
    is_whole = False
    answer: UpstreamAnswer | None = None
    try:
        with watch:
            sight.sent = True
            answer = await needs.upstreams.open(call)
            failure = await _read_answer(needs, this, request, card, dialect, watch, relay, answer, sight)
            is_whole = failure is None
    except Interrupted as interrupted:
        if isinstance(interrupted.reason, ClientGone):
            aborted = True
        else:
            failure = interrupted.reason
    except UpstreamFailedError as broken:
        failure = broken.failure
    except Exception as defect:  # noqa: BLE001 - an attempt that was sent must be settled, whatever broke
        needs.telemetry.defect(defect, request_id=this.request_id)
        failure = Failure(kind=FailureClass.DEFECT, message=type(defect).__name__)
    finally:
        if answer is not None:
            answer.release(reusable=is_whole)
    if failure is not None and _lacks_only_its_end(sight, failure):
        failure = None
    aborted = aborted or (watch.client_gone and (failure is None or failure.kind is FailureClass.TIMED_OUT))
    return _outcome(needs, this, request, dialect, sight, failure, aborted=aborted)


async def _read_answer(
    needs: Attempting,
    this: Attempt,
    request: InferenceRequest,
    card: ProviderCard,
    dialect: Dialect,
    watch: Watch,
    relay: Relay,
    answer: UpstreamAnswer,
    sight: Sight,
) -> Failure | None:
    """Reads a whole answer or relays a stream; returns what went wrong, if anything did."""
    headers = answer.headers
    upstream_id = next((headers[name] for name in dialect.request_id_headers if name in headers), None)
    sight.seen = Observation(http_status=answer.status, upstream_request_id=upstream_id)
    if answer.status != 200:
        return dialect.classify_failure(
            answer.status, headers, await _read_whole(answer, ERROR_BYTES_MAX, needs, watch, sight)
        )
    streamed = request.stream and "json" not in headers.get("content-type", "")
    if not streamed:
        announced = headers.get("content-length", "")
        sight.whole_bytes = min(int(announced), ANSWER_BYTES_MAX) if announced.isdecimal() else 0
        body = await _read_whole(answer, ANSWER_BYTES_MAX, needs, watch, sight)
        return _take_whole(this, card, dialect, body, sight, streamed=request.stream)
    sight.streamed = True
    return await _relay_stream(needs, this, card, dialect, watch, relay, answer, sight)


async def _read_whole(answer: UpstreamAnswer, bytes_max: int, needs: Attempting, watch: Watch, sight: Sight) -> bytes:
    """The whole body; from its first byte on, silence counts as idle time."""
    parts: list[bytes] = []
    size = 0
    while chunk := await answer.read():
        watch.last_read = needs.clock.monotonic()
        if not parts and answer.status == 200:
            sight.seen = replace(sight.seen, first_byte_at=needs.clock.now())
            watch.progressed()
        size += len(chunk)
        if answer.status == 200:
            sight.whole_bytes = max(sight.whole_bytes, size)
        if size > bytes_max:
            raise UpstreamFailedError(
                Failure(kind=FailureClass.BROKEN, message=f"the upstream's answer is longer than {bytes_max} bytes")
            )
        parts.append(chunk)
    return b"".join(parts)


def _take_whole(
    this: Attempt,
    card: ProviderCard,
    dialect: Dialect,
    body: bytes,
    sight: Sight,
    *,
    streamed: bool,
) -> Failure | None:
    """A whole body at status 200: an answer, or an error that the provider did not give a status for."""
    kind = sight.reader.feed_answer(body)
    if kind is EventKind.ERROR:
        return dialect.classify_failure(200, {}, body)
    if kind is not EventKind.DELTA:
        return _broken("the upstream's answer is not a chat completion")
    if streamed:
        return _broken("the upstream answered a stream request with a whole body")
    sight.body = body
    return _mismatch(this, card, sight)


async def _relay_stream(
    needs: Attempting,
    this: Attempt,
    card: ProviderCard,
    dialect: Dialect,
    watch: Watch,
    relay: Relay,
    answer: UpstreamAnswer,
    sight: Sight,
) -> Failure | None:
    """Passes events on as they come, all but the closing usage chunk and the end, which wait for the settlement."""
    scanner = SseScanner()
    reader = sight.reader
    loop_time = needs.clock.monotonic
    sight.progress_at = loop_time()
    while not reader.done:
        chunk = await answer.read()
        if chunk:
            watch.last_read = now = loop_time()
            try:
                events = scanner.feed(chunk)
            except EventTooLongError as long:
                return _broken(str(long))
        else:
            now = loop_time()
            last = scanner.finish()
            if last is not None and sight.seen.first_byte_at is None and last.raw.lstrip().startswith(b"{"):
                return _take_whole(this, card, dialect, last.raw, sight, streamed=True)  # JSON, whatever its type said
            events = [] if last is None else [_ended(last)]
        passing = [event.raw for event in events if _passes(needs, reader, watch, event, sight)]
        failure = _trouble(dialect, sight) or _mismatch(this, card, sight)
        if failure is not None and not sight.relayed:
            return failure
        if passing:
            sight.held += b"".join(passing)
            if reader.has_content or sight.relayed or len(sight.held) > PREAMBLE_BYTES_MAX:
                ready, sight.held = sight.held, b""
                sight.relayed += len(ready)
                watch.last_write = watch.writing_since = now
                await relay(ready)
                watch.writing_since = None
                watch.last_read = loop_time()  # a slow client's time is not the upstream's
        if failure is not None:
            return failure
        if now - sight.progress_at >= PROGRESS_SECONDS:
            sight.progress_at = now
            _note_progress(needs, this, sight)
        if not chunk:
            break
    if _is_whole(sight):
        return None
    return _broken("the upstream's stream ended before the answer did")


def _ended(event: Event) -> Event:
    """A stream's last event with the blank line it lacks, so that nothing runs into what we write after it."""
    missing = b"\n" if event.raw.endswith((b"\n", b"\r")) else b"\n\n"
    return Event(event.raw + missing, event.data)


def _is_whole(sight: Sight) -> bool:
    """Whether a stream that ended was an answer: ``[DONE]`` proves it (providers §1.5), else every finish reason."""
    reader = sight.reader
    if reader.done:
        return reader.complete or reader.has_content
    return reader.complete and _all_finished(sight)


def _lacks_only_its_end(sight: Sight, failure: Failure) -> bool:
    """Whether a stream was cut, or fell silent, after all of its choices had finished: the answer itself is whole."""
    is_cut = failure.kind in (FailureClass.BROKEN, FailureClass.TIMED_OUT)
    return is_cut and sight.streamed and not sight.malformed and sight.reader.complete and _all_finished(sight)


def _all_finished(sight: Sight) -> bool:
    """Whether every choice that was asked for has told its finish reason, also those that never began."""
    return len(sight.reader.finish_reasons) >= sight.choices_asked


def _passes(needs: Attempting, reader: AnswerReader, watch: Watch, event: Event, sight: Sight) -> bool:
    """Reads one event; whether it may be passed on now. Nothing passes that follows what ends a stream."""
    is_over = reader.done or sight.malformed or sight.error is not None
    if event.data is None:
        return sight.relayed > 0 and not is_over
    kind = reader.feed(event.data)
    if sight.seen.first_byte_at is None:
        sight.seen = replace(sight.seen, first_byte_at=needs.clock.now())
        watch.progressed()
    if kind is EventKind.CLOSING_USAGE:
        sight.closing = event.data
        return False
    if kind is EventKind.DONE:
        sight.done = event.raw
        return False
    if kind is EventKind.ERROR:
        sight.error = event.data
        return False
    if kind is EventKind.MALFORMED:
        sight.malformed = True
        return False
    return not is_over


def _trouble(dialect: Dialect, sight: Sight) -> Failure | None:
    """What a stream's own events say went wrong."""
    if sight.error is not None:
        return dialect.classify_failure(200, {}, sight.error)
    if sight.malformed:
        return _broken("the upstream's stream carries something that is not JSON")
    return None


def _mismatch(this: Attempt, card: ProviderCard, sight: Sight) -> Failure | None:
    """An answer from another model, where policy rejects that."""
    if card.on_model_mismatch is OnModelMismatch.FLAG:
        return None
    if not _is_another_model(this, sight.reader):
        return None
    served, asked = sight.reader.served_model, this.candidate.deployment.upstream
    return Failure(kind=FailureClass.MODEL_MISMATCH, message=f"{served} answered instead of {asked}")


def _is_another_model(this: Attempt, reader: AnswerReader) -> bool:
    """Whether the answer names another model than was asked for; a vendor before the name makes no difference."""
    served, asked = reader.served_model, this.candidate.deployment.upstream
    if served is None or served == asked:
        return False
    return served.casefold().rpartition("/")[2] != asked.casefold().rpartition("/")[2]


def _note_progress(needs: Attempting, this: Attempt, sight: Sight) -> None:
    """How far the stream has come, for the row that a crash would leave; not worth waiting for, nor giving up for."""
    reader = sight.reader
    size = reader.reasoning_bytes + reader.content_bytes + reader.tool_bytes
    mark = Progress(
        attempt_id=this.attempt_id,
        at=needs.clock.now(),
        output_tokens=needs.experience.output_tokens(this.candidate.deployment.model, size),
    )
    with contextlib.suppress(MeteringUnavailableError):
        needs.journal.append(mark)


def _broken(message: str) -> Failure:
    return Failure(kind=FailureClass.BROKEN, message=message)


def _outcome(
    needs: Attempting,
    this: Attempt,
    request: InferenceRequest,
    dialect: Dialect,
    sight: Sight,
    failure: Failure | None,
    *,
    aborted: bool,
) -> Outcome:
    reader = sight.reader
    status = _status(failure, aborted=aborted)
    judgement = _judgement(needs, this, request, reader) if status is AttemptStatus.SUCCEEDED else None
    seen = replace(
        sight.seen,
        served_model=reader.served_model,
        finish_reasons=tuple(reader.finish_reasons.values()),
        flags=_flags(this, request, reader, judgement),
    )
    usage, source = _usage(needs, this, request, dialect, sight, failure, aborted=aborted)
    return Outcome(
        status=status,
        failure=failure,
        usage=usage,
        usage_source=source,
        seen=seen,
        reader=reader,
        judgement=judgement,
        body=sight.body,
        held=sight.held,
        closing=sight.closing,
        done=sight.done,
        relayed=sight.relayed,
    )


def _judgement(needs: Attempting, this: Attempt, request: InferenceRequest, reader: AnswerReader) -> Judgement | None:
    """What is to be said of a tool-call answer. All but the end of a stream is with the client by now, and the work is
    bounded; it comes before the settlement so that the ledger's row can say it."""
    if "tools" not in request.needs:
        return None
    try:
        return judge(reader.tool_answer, request)
    except Exception as defect:  # noqa: BLE001 - an attempt that was sent must be settled, whatever broke
        needs.telemetry.defect(defect, request_id=this.request_id)
        return None


def _flags(
    this: Attempt, request: InferenceRequest, reader: AnswerReader, judgement: Judgement | None
) -> tuple[str, ...]:
    """What is odd about the answer, each once."""
    flags = dict.fromkeys(reader.flags)
    if reader.leaked is not None and is_quoted(reader.leaked, request):
        del flags[Fault.SPECIAL_TOKENS_LEAKED.value]
    if _is_another_model(this, reader):
        flags[MODEL_MISMATCH_FLAG] = None
    if judgement is not None:
        flags |= dict.fromkeys(judgement.flags)
    return tuple(flags)


def _status(failure: Failure | None, *, aborted: bool) -> AttemptStatus:
    if aborted:
        return AttemptStatus.ABORTED
    if failure is None:
        return AttemptStatus.SUCCEEDED
    gave_up = failure.kind in (FailureClass.TIMED_OUT, FailureClass.SHUTDOWN, FailureClass.DEFECT)
    return AttemptStatus.ABANDONED if gave_up else AttemptStatus.FAILED


def _usage(
    needs: Attempting,
    this: Attempt,
    request: InferenceRequest,
    dialect: Dialect,
    sight: Sight,
    failure: Failure | None,
    *,
    aborted: bool,
) -> tuple[Usage, UsageSource]:
    """What the provider told, else an estimate where money may be owed, else nothing."""
    reader = sight.reader
    if not sight.sent:
        return NO_USAGE, UsageSource.NONE
    told = _told(needs, this, dialect, reader)
    if told is not None:
        text = reader.content_bytes + reader.tool_bytes
        return told.with_reasoning_share(reasoning_bytes=reader.reasoning_bytes, content_bytes=text), (
            UsageSource.PROVIDER
        )
    nothing_came = not (sight.relayed or reader.has_content)
    if failure is not None and not failure.may_be_billed and nothing_came and not aborted:
        return NO_USAGE, UsageSource.NONE
    return _estimated(needs, this, request, sight, failure, aborted=aborted), UsageSource.ESTIMATED


def _told(needs: Attempting, this: Attempt, dialect: Dialect, reader: AnswerReader) -> Usage | None:
    """The provider's own figures; a dialect that breaks over them costs an estimate, never the answer or its row."""
    try:
        return dialect.read_usage(reader.reports)
    except Exception as defect:  # noqa: BLE001 - an attempt that was sent must be settled, whatever broke
        needs.telemetry.defect(defect, request_id=this.request_id)
        return None


def _estimated(
    needs: Attempting,
    this: Attempt,
    request: InferenceRequest,
    sight: Sight,
    failure: Failure | None,
    *,
    aborted: bool,
) -> Usage:
    """Input by the estimate. Output by the text of a stream that was seen, by the size that a whole body had or would
    have had, or, where nothing could be seen, by the account's pace."""
    reader = sight.reader
    model = this.candidate.deployment.model
    size = reader.reasoning_bytes + reader.content_bytes + reader.tool_bytes
    output = needs.experience.output_tokens(model, size)
    if sight.whole_bytes and not reader.has_content:
        output = min(needs.experience.whole_tokens(model, sight.whole_bytes), this.output_limit * request.n)
    elif not request.stream and sight.body is None and (aborted or failure is not None):
        pace = needs.pace.get((this.candidate.provider, this.candidate.account))
        elapsed = max(0.0, (needs.clock.now() - this.started_at).total_seconds())
        expected = needs.experience.answer_length(model).expected(this.output_limit) * request.n
        output = expected if pace is None else min(expected, int(pace.tokens_per_second * elapsed))
    text = reader.content_bytes + reader.tool_bytes
    return Usage(input=this.input_tokens_estimate, output=output).with_reasoning_share(
        reasoning_bytes=reader.reasoning_bytes, content_bytes=text
    )
