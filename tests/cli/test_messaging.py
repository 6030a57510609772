"""`outlast signal`, `query`, `update`, `cancel`, `terminate`: what can be said to a run from the shell."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import outlast as sdk
from cli.recording import Call, Recorder, until
from outlast.model.events import WorkflowExecutionCompleted, WorkflowExecutionStarted
from outlast.model.ids import DEFAULT_QUEUE, RunId, WorkflowId
from outlast.model.inputs import CancelRequested, SignalReceived, decode_message
from outlast.model.payloads import NULL, Arguments, Payload
from outlast.runtime.service import StartRequest
from outlast.store.api import RunStatus

CODE = """
from outlast import activity, workflow

@activity
async def note(text: str) -> str:
    return text.upper()

@workflow
class Approval:
    def __init__(self) -> None:
        self.decision = ""
        self.log: list[str] = []

    @workflow.run
    async def run(self) -> str:
        await workflow.wait(lambda: self.decision, label="decision")
        return self.decision

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision = decision

    @workflow.query
    def status(self, first: int = 0) -> list[str]:
        return self.log[first:]

    @workflow.update
    async def amend(self, text: str) -> int:
        self.log.append(await note(text))
        return len(self.log)

    @amend.validator
    def check(self, text: str) -> None:
        if not text:
            raise ValueError("text must not be empty")

    @workflow.update
    async def stall(self) -> None:
        await workflow.sleep("1 hour")

    @workflow.update
    def fail(self) -> None:
        raise ValueError("cannot") from LookupError("nothing there")

@workflow
def other() -> None: ...
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def app(tmp_path: Path) -> None:
    (tmp_path / "asked_of.py").write_text(CODE)


def place(id_: str) -> None:
    """From a process that has not got the workflow's code."""

    async def start() -> None:
        async with sdk.connect() as client:
            await client.service.start(StartRequest("Approval", WorkflowId(id_), DEFAULT_QUEUE, Arguments()))

    asyncio.run(start())


@pytest.fixture
def hosted(outlast: Call, start: Start) -> subprocess.Popen[str]:
    """The run `a-1`, in a worker that is another process."""
    worker = start("worker", "asked_of.py")
    assert worker.stdout is not None
    assert worker.stdout.readline(), worker.communicate()
    place("a-1")
    until(outlast, worker, "a-1", "(step: decision)")
    return worker


def failed(called: tuple[int, str, str], status: int, *parts: str) -> None:
    assert called[:2] == (status, "")
    assert called[2].startswith("outlast: error: ")
    assert called[2].count("\n") == 1
    for part in parts:
        assert part in called[2]


# --- with a worker in another process ---------------------------------------------------------------------------------


def test_a_run_in_another_process_is_told_asked_and_changed(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    assert outlast("query", "a-1", "status") == (0, "[]\n", "")
    assert outlast("update", "a-1", "amend", '"one"') == (0, "1\n", "")
    assert outlast("update", "a-1", "amend", "--kwargs", '{"text": "two"}') == (0, "2\n", "")
    assert outlast("query", "a-1", "status", "-1") == (0, '["TWO"]\n', "")
    assert outlast("signal", "a-1", "decide", '"yes"') == (
        0,
        "",
        "outlast: signal decide was sent to Approval/a-1\n",
    )
    until(outlast, hosted, "a-1", 'WorkflowExecutionCompleted: → "yes"')


def test_an_update_under_the_same_id_is_done_once_and_answered_also_after_the_end(
    outlast: Call, hosted: subprocess.Popen[str]
) -> None:
    for text in ('"one"', '"two"'):
        assert outlast("update", "a-1", "amend", text, "--update-id", "u-1") == (0, "1\n", "")
    assert outlast("query", "a-1", "status").out == '["ONE"]\n'
    outlast("signal", "a-1", "decide", '"yes"')
    until(outlast, hosted, "a-1", "Status: Completed")

    assert outlast("update", "a-1", "amend", '"three"', "--update-id", "u-1") == (0, "1\n", "")
    failed(outlast("update", "a-1", "amend", '"three"'), 2, "has ended", "did nothing")


def test_what_the_run_refuses_is_told_in_one_line(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    failed(
        outlast("update", "a-1", "amend", '""'),
        1,
        "update amend of Approval/a-1 was refused: ValueError: text must not be empty (at ",
        "asked_of.py:35 in check)",
    )
    failed(outlast("update", "a-1", "amend", "5"), 2, "'text'", "expected str, got int")
    failed(outlast("update", "a-1", "amend"), 2, "missing a required argument: 'text'")
    failed(outlast("update", "a-1", "amned", '"x"'), 2, "no handler for the update 'amned'", "amend")
    failed(outlast("query", "a-1", "nope"), 2, "no handler for the query 'nope'", "status")
    failed(outlast("query", "a-1", "status", '"x"'), 2, "'first'", "expected int, got str")
    assert outlast("query", "a-1", "status").out == "[]\n"
    assert "Update" not in outlast("show", "a-1").out


def test_an_update_that_fails_shows_its_causes(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    status, out, err = outlast("update", "a-1", "fail")

    assert (status, out) == (1, "")
    first, cause = err.splitlines()
    assert first.startswith("outlast: error: update fail of Approval/a-1 failed: ValueError: cannot (at ")
    assert cause == "  caused by LookupError: nothing there"


def test_an_update_that_takes_longer_can_be_waited_for_again(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    failed(
        outlast("update", "a-1", "stall", "--update-id", "u-1", "--timeout", "0.2"),
        1,
        "update stall of Approval/a-1 is not done after 200ms",
        "the same command with --update-id u-1 waits for it again",
    )
    until(outlast, hosted, "a-1", "WorkflowExecutionUpdateAccepted: stall")
    failed(
        outlast("update", "a-1", "stall", "--update-id", "u-1", "--timeout", "0.5"),
        1,
        "the run has accepted it, and its handler is at work",
    )


def test_a_run_that_has_ended_is_asked_with_its_code(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    outlast("update", "a-1", "amend", '"one"')
    outlast("signal", "a-1", "decide", '"yes"')
    until(outlast, hosted, "a-1", "Status: Completed")
    events = outlast("history", "a-1").out

    failed(outlast("query", "a-1", "status"), 2, "Approval/a-1 has ended", "--code FILE.py:WORKFLOW")
    failed(outlast("query", "a-1", "status", "--code", "asked_of.py:other"), 2, "is a run of Approval", "names other")
    assert outlast("query", "a-1", "status", "--code", "asked_of.py:Approval") == (0, '["ONE"]\n', "")
    failed(outlast("query", "a-1", "nope", "--code", "asked_of.py:Approval"), 2, "no handler", "status")
    assert outlast("history", "a-1").out == events


def test_a_hosted_run_is_cancelled_and_terminated_by_its_worker(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    place("a-2")
    until(outlast, hosted, "a-2", "(step: decision)")

    assert (
        outlast("cancel", "a-1", "--reason", "too late").err == "outlast: the wish to cancel was sent to Approval/a-1\n"
    )
    assert outlast("terminate", "a-2", "--reason", "by hand").status == 0
    until(outlast, hosted, "a-1", "WorkflowExecutionCancelRequested: too late")
    until(outlast, hosted, "a-1", "Status: Cancelled")
    until(outlast, hosted, "a-2", "WorkflowExecutionTerminated: by hand")


# --- without one ------------------------------------------------------------------------------------------------------


def test_without_a_worker_a_question_ends_with_what_is_missing(outlast: Call) -> None:
    place("a-1")
    wanted = "the run waits for a worker that hosts Approval on queue default"

    failed(outlast("query", "a-1", "status", "--timeout", "0.1"), 1, "gave no answer within 100ms", wanted)
    failed(outlast("update", "a-1", "amend", '"one"', "--timeout", "100ms"), 1, "is not done after 100ms", wanted)


def test_a_killed_worker_is_named_when_its_run_gives_no_answer(outlast: Call, hosted: subprocess.Popen[str]) -> None:
    hosted.send_signal(signal.SIGKILL)
    hosted.wait()
    failed(outlast("query", "a-1", "status", "--timeout", "0.1"), 1, f"/{hosted.pid}) has ended")


def test_with_its_code_a_run_that_nobody_hosts_is_asked_here(outlast: Call) -> None:
    place("a-1")
    assert outlast("query", "a-1", "status", "--code", "asked_of.py:Approval") == (0, "[]\n", "")


def test_a_question_that_nobody_took_is_not_in_the_way_of_the_next(outlast: Call) -> None:
    place("a-1")
    assert outlast("query", "a-1", "status", "--timeout", "0.1").status == 1
    assert outlast("query", "a-1", "status", "--code", "asked_of.py:Approval") == (0, "[]\n", "")


def test_a_run_that_nobody_hosts_is_terminated_at_once(outlast: Call) -> None:
    place("a-1")
    assert outlast("terminate", "a-1", "--reason", "by hand") == (
        0,
        "",
        "outlast: the wish to terminate was sent to Approval/a-1\n",
    )
    assert outlast("show", "a-1").out.endswith("WorkflowExecutionTerminated: by hand\n")


def open_run(recorder: Recorder) -> None:
    recorder.run("a-1", "08:00:00", WorkflowExecutionStarted("Approval", WorkflowId("a-1"), "default"))


def mail(recorder: Recorder) -> list[object]:
    return [decode_message(each.body) for each in recorder.do(recorder.store.mail_for([RunId("run-of-a-1")]))]


def test_what_is_sent_stands_in_the_mailbox_as_it_was_typed(outlast: Call, recorder: Recorder) -> None:
    open_run(recorder)

    assert outlast("signal", "a-1", "pay", '{"eur": 1.50}', "-7", "18446744073709551617").status == 0
    assert outlast("signal", "run-of-a-1", "pay", "--kwargs", '{"eur": [1, 2]}').status == 0
    assert outlast("cancel", "a-1").status == 0

    first, second, third = mail(recorder)
    assert isinstance(first, SignalReceived)
    assert isinstance(second, SignalReceived)
    assert isinstance(third, CancelRequested)
    texts = (b'{"eur":1.50}', b"-7", b"18446744073709551617")
    assert first.arguments == Arguments(tuple(Payload.from_json(text) for text in texts))
    assert second.arguments == Arguments(kwargs={"eur": Payload.from_json(b"[1,2]")})
    assert len({first.message_id, second.message_id, third.message_id}) == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["signal", "a-1"], "Missing argument 'NAME'"),
        (["signal", "a-1", ""], "NAME is empty"),
        (["signal", "a-1", "decide", "yes"], "argument 1 is not JSON: yes"),
        (["signal", "a-1", "decide", '"yes"', "{"], "argument 2 is not JSON: {"),
        (["signal", "a-1", "decide", "--kwargs", "[]"], "JSON object"),
        (["signal", "a-1", "decide", "1", "--kwargs", "{}"], "not both"),
        (["signal", "a-1", "decide", "--resaon", "1"], "--resaon"),
        (["signal", "a-7", "decide"], "there is no run with the id 'a-7' in sqlite:///outlast.db; ids like it: a-1"),
        (["query", "a-1", "status", "yes"], "argument 1 is not JSON: yes"),
        (["query", "a-1", "status", "--timeout", "soon"], "'soon' is not a duration"),
        (["query", "a-1", "status", "--code", "asked_of.py"], "FILE.py:WORKFLOW"),
        (
            ["query", "a-1", "status", "--code", "askd_of.py:Approval"],
            "there is no file askd_of.py; there is asked_of.py",
        ),
        (["update", "a-1", "amend", "yes"], "argument 1 is not JSON: yes"),
        (["update", "a-1", "amend", "--update-id", " "], "--update-id must be some text"),
        (["update", "a-1", "amend", "--timeout", "-1"], "--timeout"),
        (["cancel", "a-1", "because"], "because"),
        (["terminate", "b"], "there is no run with the id 'b'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_explained_and_sends_nothing(
    outlast: Call, recorder: Recorder, arguments: list[str], part: str
) -> None:
    open_run(recorder)
    failed(outlast(*arguments), 2, part)
    assert mail(recorder) == []


@pytest.mark.parametrize("command", [("signal", "a-1", "decide"), ("cancel", "a-1"), ("terminate", "a-1")])
def test_a_run_that_has_ended_takes_nothing(outlast: Call, recorder: Recorder, command: tuple[str, ...]) -> None:
    open_run(recorder)
    recorder.turn("a-1", "08:00:01", WorkflowExecutionCompleted(NULL), status=RunStatus.COMPLETED)

    failed(outlast(*command), 2, "Approval/a-1 has ended already; nothing was sent")
    assert mail(recorder) == []


@pytest.mark.parametrize("command", [("signal", "a", "b"), ("query", "a", "b"), ("update", "a", "b"), ("cancel", "a")])
def test_without_a_database_none_is_made(outlast: Call, tmp_path: Path, command: tuple[str, ...]) -> None:
    failed(outlast(*command), 2, "no such file: outlast.db")
    assert not list(tmp_path.glob("outlast.db*"))
