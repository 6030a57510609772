"""What is written is read back as it was: events, messages, attempts, payloads of any encoding."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct
from outlast.model.events import Event, MessageUnhandled, TimerStarted, decode_events, encode_events
from outlast.model.failures import Failure, FailureKind
from outlast.model.ids import TURN_BITS, NodeId, TimerId, turn_id
from outlast.model.inputs import Message, decode_message, encode_message
from outlast.model.payloads import JSON, Arguments, Payload
from outlast.model.policies import RetryPolicy
from outlast.runtime.ports import Attempt, decode_attempt, encode_attempt

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**70), 2**70)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_payloads = st.builds(
    lambda value, indent, ascii_only: Payload.from_json(
        json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    ),
    json_values,
    st.sampled_from([None, 2]),
    st.booleans(),
)
foreign_payloads = st.builds(
    Payload.from_bytes,
    st.binary(max_size=40),
    texts.filter(lambda encoding: encoding != JSON),
    st.none() | st.dictionaries(texts, texts, max_size=2),
)
payloads = json_payloads | foreign_payloads
BASE: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: numbers,
    float: floats,
    Payload: payloads,
    FailureKind: st.sampled_from(FailureKind),
}


def strategy_of(annotation: str) -> st.SearchStrategy[Any]:
    """A strategy for a field, by the words of its annotation."""
    if annotation.endswith(" | None"):
        return st.none() | strategy_of(annotation.removesuffix(" | None"))
    match annotation:
        case "str" | "ActivityId" | "TimerId" | "WaitId" | "MessageId" | "WorkflowId" | "RunId" | "Namespace":
            return texts
        case "int":
            return numbers
        case "float":
            return floats
        case "bool":
            return st.booleans()
        case "tuple[str, ...]":
            return st.lists(texts, max_size=2).map(tuple)
        case "Payload":
            return payloads
        case "Arguments":
            return arguments
        case "RetryPolicy":
            return built(RetryPolicy)
        case "FailureKind":
            return st.sampled_from(FailureKind)
        case "Failure":
            return failures
        case "Message":
            return messages
        case _:
            raise AssertionError(f"no strategy for {annotation!r}: add one")


def built(kind: type[Struct]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: strategy_of(kind.__annotations__[name]) for name in kind.__struct_fields__})


arguments = st.builds(
    Arguments, st.lists(payloads, max_size=2).map(tuple), st.dictionaries(texts, payloads, max_size=2)
)
failures = st.deferred(lambda: built(Failure))
messages: st.SearchStrategy[Message] = st.deferred(lambda: st.one_of(*(built(kind) for kind in get_args(Message))))
events: st.SearchStrategy[Event] = st.deferred(lambda: st.one_of(*(built(kind) for kind in get_args(Event))))


@pytest.mark.parametrize("kind", get_args(Event))
def test_every_event_comes_back_as_it_was(kind: type[Struct]) -> None:
    @given(built(kind))
    def comes_back(event: Event) -> None:
        data = encode_events([event])
        assert decode_events(data) == [event]
        assert type(decode_events(data)[0]) is kind
        assert encode_events(decode_events(data)) == data

    comes_back()


@given(st.lists(events, max_size=5))
def test_events_of_a_turn_keep_their_order(turn: list[Event]) -> None:
    assert decode_events(encode_events(turn)) == turn


@given(messages)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    data = encode_message(message)
    assert decode_message(data) == message
    assert encode_message(decode_message(data)) == data
    assert decode_events(encode_events([MessageUnhandled(message)])) == [MessageUnhandled(message)]


@given(built(Attempt))
def test_an_attempt_comes_back_as_it_was(attempt: Attempt) -> None:
    data = encode_attempt(attempt)
    assert decode_attempt(data) == attempt
    assert encode_attempt(decode_attempt(data)) == data


@given(st.binary(max_size=200), texts.filter(lambda encoding: encoding != JSON))
def test_bytes_of_any_encoding_come_back_as_they_were(data: bytes, encoding: str) -> None:
    payload = Payload.from_bytes(data, encoding, {"key": "k"})
    assert payload.to_bytes() == data
    (back,) = decode_message(encode_message(_with(payload))).failure.args, payload  # type: ignore[union-attr]
    assert back[0].to_bytes() == data


def _with(payload: Payload) -> Any:
    from outlast.model.inputs import AttemptFailed

    return AttemptFailed("1", 1, 0, Failure("E", "", args=payload), 0.0)  # type: ignore[arg-type]


@given(json_values)
def test_json_text_is_kept_byte_for_byte(value: object) -> None:
    text = json.dumps(value, indent=1).encode()
    payload = Payload.from_json(text)
    assert payload.to_bytes() == text
    assert json.loads(json.loads(encode_message(_with(payload)))["failure"]["args"]["data"].__class__ and text) == value
