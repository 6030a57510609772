"""`outlast history`: the record as it is published."""

from __future__ import annotations

import json

import msgspec

from cli.recording import Call, Recorder, at_us
from outlast.model.events import ActivityCompleted, ActivityScheduled, Event, WorkflowExecutionStarted
from outlast.model.ids import ActivityId, WorkflowId
from outlast.model.payloads import Arguments, Payload

LONG = "x" * 10_000


def record(recorder: Recorder) -> list[Event]:
    payload = Payload.from_json(json.dumps({"text": LONG}).encode())
    events: list[Event] = [
        WorkflowExecutionStarted("order", WorkflowId("order-1"), "default", Arguments((payload,))),
        ActivityScheduled(ActivityId("1"), "charge"),
        ActivityCompleted(ActivityId("1"), at_us("08:00:01"), payload),
    ]
    recorder.run("order-1", "08:00:00", *events[:2])
    recorder.turn("order-1", "08:00:02", events[2])
    return events


def test_json_is_the_published_form_unabridged(outlast: Call, recorder: Recorder) -> None:
    events = record(recorder)

    status, out, err = outlast("history", "order-1", "-o", "json")

    assert (status, err) == (0, "")
    items = json.loads(out)
    assert [(item["position"], item["at"]) for item in items] == [
        (1, "2026-06-15T08:00:00.000000Z"),
        (2, "2026-06-15T08:00:00.000000Z"),
        (3, "2026-06-15T08:00:02.000000Z"),
    ]
    assert all(set(item) == {"position", "at", "event"} for item in items)
    assert items[0]["event"] == {
        "type": "WorkflowExecutionStarted",
        "workflow": "order",
        "workflow_id": "order-1",
        "queue": "default",
        "arguments": {"args": [{"data": {"text": LONG}}]},
    }
    assert msgspec.convert(items, list[dict[str, object]])[2]["event"] == json.loads(msgspec.json.encode(events[2]))


def test_text_is_one_event_per_line(outlast: Call, recorder: Recorder) -> None:
    record(recorder)

    lines = outlast("history", "order-1").out.splitlines()

    assert len(lines) == 3
    assert lines[1] == (
        '2  2026-06-15T08:00:00.000000Z  {"type":"ActivityScheduled","activity_id":"1","activity":"charge"}'
    )
    assert LONG in lines[2]
