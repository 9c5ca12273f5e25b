"""The stream scanner: what is relayed, what is held back, and what breaks a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.providers.sse_scan import SseScanner

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
DONE = b"data: [DONE]\n\n"


def event(newline: bytes = b"\n", **members: Any) -> bytes:
    return b"data: " + json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode() + newline * 2


def delta(index: int = 0, finish: str | None = None, /, *, newline: bytes = b"\n", more: Any = None, **d: Any) -> bytes:
    choice = {"index": index, "delta": d, "logprobs": None, "finish_reason": finish}
    return event(newline, id="c-1", model="m", choices=[choice], **(more or {}))


ROLE = delta(role="assistant", content="")
HELLO = delta(content="Hello")
STOP = delta(0, "stop")
USAGE_ONLY = event(id="c-1", model="m", choices=[], usage=USAGE)
GOOD = (ROLE, HELLO, STOP, USAGE_ONLY, DONE)


@dataclass
class Seen:
    relayed: bytes
    scanner: SseScanner

    @property
    def outcome(self) -> tuple[Any, ...]:
        s = self.scanner
        return (self.relayed, s.done, s.failure, s.output_events, s.usage, s.usage_event, s.finish_reason)


def scan(*reads: bytes, end: bool = True, **options: Any) -> Seen:
    scanner = SseScanner(**{"include_usage": False, **options})
    relayed = [scanner.feed(read) for read in reads]
    relayed.append(scanner.finish() if end else None)
    return Seen(b"".join(block for block in relayed if block is not None), scanner)


def test_whole_events_are_relayed_verbatim_without_usage_event_and_done() -> None:
    seen = scan(b"".join(GOOD))
    assert seen.relayed == ROLE + HELLO + STOP
    assert seen.scanner.done
    assert seen.scanner.usage is not None
    assert (seen.scanner.usage.input_tokens, seen.scanner.usage.output_tokens) == (10, 2)
    assert seen.scanner.usage_event == {"id": "c-1", "model": "m", "choices": [], "usage": USAGE}
    assert seen.scanner.finish_reason == "stop"


def test_one_event_a_read_is_handed_on_without_a_copy() -> None:
    scanner = SseScanner(include_usage=False)
    assert scanner.feed(HELLO) is HELLO


def test_half_an_event_waits_for_its_other_half() -> None:
    scanner = SseScanner(include_usage=False)
    assert scanner.feed(HELLO[:40]) is None
    assert scanner.feed(HELLO[40:] + STOP[:5]) == HELLO
    assert scanner.feed(STOP[5:-1]) is None
    assert scanner.feed(STOP[-1:]) == STOP


@pytest.mark.parametrize(
    ("chunk", "events"),
    [
        (ROLE, 0),
        (delta(role="assistant", content=None), 0),
        (delta(), 0),
        (STOP, 0),
        (delta(content="x"), 1),
        (delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]), 1),
        (delta(reasoning_content="hm"), 1),
        (delta(reasoning="hm"), 1),
        (delta(refusal="no"), 1),
        (delta(audio={"id": "a"}), 1),
        (delta(function_call={"arguments": "{"}), 1),
        (delta(content="", tool_calls=[], refusal=None), 0),
        (event(choices=[], prompt_filter_results=[]), 0),
        (b": comment\n\n", 0),
    ],
)
def test_output_is_counted_by_event_and_a_role_alone_is_none(chunk: bytes, events: int) -> None:
    assert scan(chunk, end=False).scanner.output_events == events


def test_several_choices_in_one_event_count_once_and_all_must_finish() -> None:
    both = event(choices=[{"index": i, "delta": {"content": "x"}, "finish_reason": None} for i in (0, 1)])
    seen = scan(both, delta(0, "stop"), choices=2)
    assert seen.scanner.output_events == 1
    assert not seen.scanner.ended
    assert seen.scanner.failure is not None
    assert scan(both, delta(0, "stop"), delta(1, "length"), choices=2).scanner.done


def test_null_usage_is_shown_only_to_those_who_asked() -> None:
    chunk = delta(content='tricky ,"usage":null text', more={"usage": None})
    assert scan(chunk, end=False, include_usage=True).relayed == chunk
    bare = scan(chunk, end=False).relayed
    assert bare == delta(content='tricky ,"usage":null text')


def test_usage_within_a_nested_object_is_not_ours_to_remove() -> None:
    nested = delta(content="x", more={"x_groq": {"id": "r", "usage": None}, "usage": None})
    relayed = json.loads(scan(nested, end=False).relayed[6:])
    assert "usage" not in relayed
    assert relayed["x_groq"] == {"id": "r", "usage": None}
    both = delta(content="x", more={"x_groq": {"id": "r", "usage": None}, "usage": USAGE})
    relayed = json.loads(scan(both, end=False).relayed[6:])
    assert "usage" not in relayed
    assert relayed["x_groq"] == {"id": "r", "usage": None}
    untouched = delta(content="x", more={"x_groq": {"id": "r", "usage": None}})
    assert scan(untouched, end=False).relayed == untouched


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_usage_on_a_content_chunk_is_taken_out_and_kept(newline: bytes) -> None:
    last = delta(0, "stop", content="x", newline=newline, more={"usage": USAGE})
    for asked in (False, True):
        seen = scan(HELLO, last, DONE, include_usage=asked)
        assert seen.relayed == HELLO + delta(0, "stop", content="x", newline=newline)
        assert seen.scanner.usage is not None
        assert seen.scanner.usage_event == {"id": "c-1", "model": "m", "choices": [], "usage": USAGE}


def test_running_usage_stays_for_those_who_asked_for_it_on_every_chunk() -> None:
    first = delta(content="a", more={"usage": {**USAGE, "completion_tokens": 1}})
    seen = scan(first, STOP, USAGE_ONLY, DONE, include_usage=True, usage_on_chunks=True)
    assert seen.relayed == first + STOP
    assert seen.scanner.usage is not None
    assert seen.scanner.usage.output_tokens == 2


def test_usage_that_counts_no_output_although_there_was_some_is_none() -> None:
    zero = event(choices=[], usage={**USAGE, "completion_tokens": 0})
    assert scan(HELLO, STOP, zero, DONE).scanner.usage is None


def error_frames() -> list[bytes]:
    return [
        event(error={"message": "secret prompt text", "type": "InternalServerError", "code": 500}),
        event(error="secret prompt text"),
        event(object="error", message="secret prompt text"),
        b'event: error\ndata: {"type":"overloaded_error","message":"secret prompt text"}\n\n',
        b'error: {"message":"secret prompt text"}\n\n',
        delta(content=" x", more={"error": {"message": "secret prompt text"}}),
        delta(0, "abort", content=" secret prompt text"),
        delta(0, "error"),
    ]


@pytest.mark.parametrize("frame", error_frames())
def test_an_error_breaks_the_stream_even_if_done_follows(frame: bytes) -> None:
    seen = scan(ROLE + HELLO + frame + STOP + DONE)
    assert seen.relayed == ROLE + HELLO
    assert not seen.scanner.done
    assert seen.scanner.failure is not None
    assert "secret" not in seen.scanner.failure


def test_the_failure_names_type_and_code_of_the_error() -> None:
    failure = scan(error_frames()[0]).scanner.failure
    assert failure == "the upstream sent an error in the stream (type InternalServerError, code 500)"


def test_an_error_of_null_is_no_error() -> None:
    chunk = delta(content="x", more={"error": None})
    assert scan(chunk, end=False).relayed == chunk


@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"id":"c","choices":[{"index":0,"del\n\n',
        b"data: 17\n\n",
        b'data: {"choices":"none"}\n\n',
        b'data: {"choices":[{"delta":"text"}]}\n\n',
        b"<html><body>Bad gateway</body></html>\n\n",
        b'{"choices":[]}\n\n',
        b"data: \n\n",
        b'data: {"choices":[{"delta":{"content":' + b"[" * 5_000 + b"]" * 5_000 + b"}}]}\n\n",
        b'data: {"choices":[{"finish_reason":"\xff"}]}\n\n',
    ],
)
def test_a_malformed_event_breaks_the_stream_and_nothing_after_it_is_relayed(bad: bytes) -> None:
    seen = scan(HELLO + bad + HELLO + STOP + DONE)
    assert seen.relayed == HELLO
    assert seen.scanner.failure == "an event of the stream is malformed"


def test_the_end_without_done_is_good_only_after_a_finish_reason() -> None:
    assert scan(ROLE, HELLO, STOP).scanner.done
    assert scan(ROLE, HELLO, STOP, USAGE_ONLY).scanner.usage is not None
    cut = scan(ROLE, HELLO)
    assert cut.relayed == ROLE + HELLO
    assert cut.scanner.failure is not None
    assert "cut" in cut.scanner.failure


def test_the_end_within_an_event_is_a_cut() -> None:
    cut = scan(HELLO, STOP[:-20])
    assert cut.relayed == HELLO
    assert cut.scanner.failure == "the stream was cut within an event"
    assert scan(HELLO, STOP, USAGE_ONLY[:-20]).scanner.done  # all was said; only usage is lost


def test_the_last_event_may_lack_its_blank_line() -> None:
    assert scan(HELLO, STOP[:-1]).relayed == HELLO + STOP[:-1] + b"\n\n"
    assert scan(HELLO, STOP, b"data: [DONE]").scanner.done


def test_done_without_any_chunk_is_no_answer() -> None:
    assert scan(DONE).scanner.failure == "the stream ended before it began"


def test_what_follows_done_is_ignored() -> None:
    seen = scan(HELLO + STOP + DONE + HELLO, HELLO)
    assert seen.relayed == HELLO + STOP
    assert seen.scanner.done


def test_comments_alone_are_dropped_and_comments_of_an_event_stay() -> None:
    odd = b": ping\n" + HELLO
    seen = scan(b": keep-alive\n\n" + odd + b": x\n\n\n\n" + STOP)
    assert seen.relayed == odd + STOP


@pytest.mark.parametrize(
    "odd",
    [
        b'data:{"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
        b'event: message\nid: 7\ndata: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
        b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"x"}}]}\n\n',
        b'\xef\xbb\xbfdata: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n',
        b'retry: 3\r\ndata: {"choices":[{"index":0,"delta":{"content":"x"}}]}\r\n\r\n',
    ],
)
def test_other_spellings_of_an_event_are_relayed_as_they_are(odd: bytes) -> None:
    seen = scan(odd, end=False)
    assert seen.relayed == odd
    assert seen.scanner.output_events == 1


def test_usage_is_taken_out_beside_an_unpaired_surrogate_too() -> None:
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":1}'
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}],' + usage + b"}\n\n"
    seen = scan(chunk, end=False)
    assert b"usage" not in seen.relayed
    assert b"\\ud83d" in seen.relayed
    assert seen.scanner.usage is not None


@pytest.mark.parametrize(
    "told",
    [b'{"prompt_tokens":1e400,"completion_tokens":2}', b'{"prompt_tokens":' + b"9" * 5_000 + b"}", b'{"a":"\xff"}'],
)
def test_usage_that_nobody_can_read_is_none_and_the_text_stays(told: bytes) -> None:
    seen = scan(HELLO + STOP + b'data: {"choices":[],"usage":' + told + b"}\n\n" + DONE)
    assert (seen.relayed, seen.scanner.done) == (HELLO + STOP, True)
    assert (seen.scanner.usage, seen.scanner.usage_event) == (None, None)


@pytest.mark.parametrize("error", [b'"\xff"', b'{"type":"\xff"}', b'{"code":1e400}'])
def test_an_error_that_nobody_can_read_breaks_the_stream_all_the_same(error: bytes) -> None:
    seen = scan(HELLO + b'data: {"error":' + error + b"}\n\n" + DONE)
    assert seen.relayed == HELLO
    assert seen.scanner.failure == "the upstream sent an error in the stream"


def test_usage_is_taken_out_beside_bytes_that_are_no_text_too() -> None:
    seen = scan(b'data: {"\xff":1,"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n', end=False)
    assert b"usage" not in seen.relayed
    assert b'"content":"x"' in seen.relayed


_PIECES = (b'data: {"choices":[', b'{"delta":{"content":"x"}}', b'"usage":', b'"error":', b"{", b"}", b"[", b"]", b",")
_PIECES = (*_PIECES, b"\xff", b"\n\n", b"1e400", b"9" * 30, b'"\\ud800"', b"null", b"data: [DONE]\n\n", b'"id":"\xff"')


@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=25))
def test_whatever_comes_is_read_or_breaks_the_stream(pieces: list[bytes]) -> None:
    seen = scan(b"".join(pieces))
    assert seen.scanner.done or seen.scanner.failure is not None
    assert seen.scanner.usage is None or seen.scanner.usage_event is not None


def test_an_event_beyond_the_limit_breaks_the_stream_however_it_comes() -> None:
    big = delta(content="x" * 300)
    for reads in ([big], [big[:120], big[120:240], big[240:]], [bytes([b]) for b in big]):
        seen = scan(HELLO, *reads, max_event_bytes=200)
        assert seen.relayed == HELLO
        assert seen.scanner.failure == "an event is larger than 200 bytes"
    exact = len(HELLO) - 2
    assert scan(HELLO, end=False, max_event_bytes=exact).relayed == HELLO
    assert scan(*(bytes([b]) for b in HELLO), end=False, max_event_bytes=exact).relayed == HELLO


def test_a_failure_found_outside_keeps_the_first_reason() -> None:
    scanner = SseScanner(include_usage=False)
    scanner.fail("first")
    scanner.fail("second")
    assert (scanner.failure, scanner.feed(HELLO), scanner.finish()) == ("first", None, None)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NEWLINES = st.sampled_from([b"\n", b"\r\n"])
EVENTS = st.one_of(
    st.builds(lambda text, nl: delta(content=text, newline=nl), TEXT, NEWLINES),
    st.builds(lambda text: delta(content=text, more={"usage": None}), TEXT),
    st.builds(lambda text, nl: delta(content=text, newline=nl, more={"usage": USAGE}), TEXT, NEWLINES),
    st.builds(lambda text: delta(tool_calls=[{"index": 0, "function": {"arguments": text}}]), TEXT),
    st.sampled_from([ROLE, STOP, USAGE_ONLY, DONE, b": ping\n\n", b"\n", b"\r\n\r\n", b"data: \n\n", b"garbage\n\n"]),
    st.sampled_from([*error_frames(), delta(0, "stop", newline=b"\r\n"), b"data: [DONE]\r\n\r\n", STOP[:-1]]),
)


@settings(max_examples=400, deadline=None)
@given(
    events=st.lists(EVENTS, max_size=8),
    cuts=st.lists(st.integers(0, 1200), max_size=30),
    asked=st.booleans(),
    tail=TEXT,
)
def test_where_the_bytes_are_cut_makes_no_difference(
    events: list[bytes], cuts: list[int], asked: bool, tail: str
) -> None:
    stream = b"".join(events) + tail.encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reads = [stream[a:b] for a, b in pairwise(edges)]
    options: dict[str, Any] = {"include_usage": asked, "max_event_bytes": 400}
    assert scan(*reads, **options).outcome == scan(stream, **options).outcome
    single = [stream[i : i + 1] for i in range(len(stream))]
    assert scan(*single, **options).outcome == scan(stream, **options).outcome


PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=8)
LIKE_THE_LAST = st.one_of(
    st.builds(lambda texts: b"".join(delta(content=text) for text in texts), st.lists(PLAIN, min_size=1, max_size=4)),
    st.builds(lambda text: delta(0, "stop", content=text), PLAIN),
    st.builds(lambda text: delta(1, content=text), PLAIN),
    st.builds(lambda text: delta(content=text, tool_calls=[{"index": 0}]), PLAIN),
    st.builds(lambda text: event(id="c-1", model="m", error={"message": text}), PLAIN),
    st.sampled_from(
        [HELLO[:-2] + b"x" + HELLO[-2:], HELLO.replace(b"Hello", b'He"llo'), HELLO.replace(b"ll", b"\xff")]
    ),
    st.sampled_from([HELLO.replace(b"Hello", b""), HELLO.replace(b"Hello", b"x" * 400), delta(content=None)]),
)


@settings(max_examples=400, deadline=None)
@given(events=st.lists(st.one_of(LIKE_THE_LAST, EVENTS), max_size=8), asked=st.booleans())
def test_events_that_are_known_without_decoding_are_read_as_if_decoded(events: list[bytes], asked: bool) -> None:
    options: dict[str, Any] = {"include_usage": asked, "max_event_bytes": 400, "choices": 2}
    stream = b"".join((HELLO, *events))
    assert scan(stream, **options).outcome == scan(stream, templates=0, **options).outcome


@given(texts=st.lists(TEXT, min_size=1, max_size=6), asked=st.booleans())
def test_no_text_is_lost_or_changed(texts: list[str], asked: bool) -> None:
    chunks = [delta(content=text, more={"usage": None}) for text in texts]
    relayed = scan(*chunks, STOP, USAGE_ONLY, DONE, include_usage=asked).relayed
    events = [json.loads(part[6:]) for part in relayed.split(b"\n\n") if part]
    assert [e["choices"][0]["delta"].get("content") for e in events] == [*texts, None]
