"""Invariants, held against the database after every write, and at the end.

Theory of operation
===================
The checks read tables, not memory, and keep books of their own: for each run the journal as it was seen last, and its
fold. After a write, the runs that it may have touched are read again:
- the journal only grows, and what is in it is a history (`engine.invariants` keeps a second set of books);
- the row says what the history says: next event, status, owner, times;
- an open run has a live owner, or waits for a named thing: it is due when its history says that it has something to
  do by itself, and mail has made it free to be claimed;
- a commit was written by the owner, at the position that follows, and its owner was alive when it claimed the run;
- a run is parked only if it could not be written, or if it outlived too many nodes;
- every message that the database has accepted is in the mailbox or in the history; every question that it has
  accepted is in the mailbox, or in the history, or it has a reply; a run that has ended has answered what was open;
- no event has a time later than any clock of the world has shown: a timer that is early cannot hide behind a date.

Two things are found out only when an activity begins (`Witness`): that its schedule is on disk by then (persist, then
tell), and that its completion is not. The process that runs it must be a member for that: one that was stopped, and
declared dead meanwhile, may run what it was given before; nobody can prevent it, and its report is refused.

What the outside is told is held against the journal at that moment (`expect_...`): an update that was said to be
accepted, or done with a result, is recorded so; a query shows only what is recorded, and all that anybody had been
told before it was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outlast.engine.invariants import InvariantViolation, check_state
from outlast.engine.replay import replay
from outlast.engine.run import Phase, RunState
from outlast.model.errors import OutlastError
from outlast.model.events import (
    ActivityAttemptLost,
    ActivityCompleted,
    HistoryEvent,
    MessageUnhandled,
    TerminalEvent,
    WorkflowExecutionCancelled,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionSignaled,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
    decode_events,
)
from outlast.model.ids import DEFAULT_NAMESPACE, MessageId, NodeId, RunId
from outlast.model.replies import Accepted, Answered, Ended, Failed, Recorded, Refused, Reply, decode_reply, reply_id
from outlast.sdk.program import PythonProgram
from outlast.sdk.registry import Registry
from outlast.store.api import Claimed, Commit
from sim.told import EVERYTHING, NEVER

if TYPE_CHECKING:
    from sim.database import Database

STATUS: dict[type[TerminalEvent], str] = {
    WorkflowExecutionCompleted: "completed",
    WorkflowExecutionFailed: "failed",
    WorkflowExecutionCancelled: "cancelled",
    WorkflowExecutionTerminated: "terminated",
}

EXPECTED_FAILURES = ("Refused", "ActivityTimeout", "ActivityLost", "ExceptionGroup", "CancelledError", "TimeoutError")
"""How a scripted workflow may fail: with what its script lets happen."""

ROW = "SELECT status, owner, next_event, wake_at_us, closed_at_us, workflow_id, claims FROM runs WHERE run_id = ?"
JOURNAL = "SELECT first_event, count, at_us, events FROM journal WHERE run_id = ? ORDER BY first_event, seq"
REPLY = "SELECT body FROM replies WHERE message_id = ?"
MAIL = "SELECT message_id FROM mailbox WHERE run_id = ?"
TASKS = "SELECT activity_id, attempt FROM tasks WHERE run_id = ?"
IS_PARKED = "SELECT 1 FROM run_details WHERE run_id = ? AND error_at = ?"
IS_WOKEN = "SELECT 1 FROM woken WHERE run_id = ?"

_registry: Registry | None = None


class Violation(AssertionError):
    """A promise was broken."""


class Books:
    """What is known of one run."""

    __slots__ = (
        "asked", "asks", "claims", "completed", "delivered", "events", "known", "messages", "owner", "questions",
        "rows", "seen", "state", "status", "unhandled", "updates", "workflow_id",
    )  # fmt: skip

    def __init__(self, run_id: RunId) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.events: list[HistoryEvent] = []
        self.state = RunState(run_id)
        self.status = ""
        self.owner: int | None = None
        self.claims = 0
        self.workflow_id = ""
        self.messages: set[str] = set()
        """Accepted by the database."""
        self.seen: set[str] = set()
        """In the history."""
        self.completed: set[str] = set()
        self.delivered: set[tuple[str, int]] = set()
        """Attempts whose success was put into the mailbox."""
        self.questions: set[str] = set()
        """Updates and queries that came through the mailbox, and have no reply yet."""
        self.asked: set[str] = set()
        """The same, with or without a reply."""
        self.unhandled: set[str] = set()
        """In the history, but the code has not heard of them."""
        self.updates: dict[str, WorkflowExecutionUpdateCompleted | None] = {}
        """Those in the history, and what they have come to."""
        self.known: set[str] = set()
        """Messages of which somebody outside knows that the run has them."""
        self.asks: dict[str, list[Ask]] = {}


class Ask:
    """Somebody asks for an update."""

    __slots__ = ("answer", "begun_us", "unknown")

    def __init__(self, begun_us: int) -> None:
        self.begun_us = begun_us
        self.answer = ""
        """What they were told in the end; nothing, if they were killed before."""
        self.unknown = False
        """Something that they have sent may arrive late."""


class Checks:
    def __init__(self, database: Database) -> None:
        self._db = database
        self.books: dict[RunId, Books] = {}
        self.latest_us = 0
        """The latest time that any clock of the world has shown."""
        self.events = 0
        self.may_be_parked: set[RunId] = set()
        self.answered_us: dict[str, int] = {}
        """When the last answer to an update was written first; by `reply_id`."""

    def committed(self, commit: Commit, now_us: int) -> None:
        """A commit was written: by the owner, and by nobody else."""
        for reply in commit.replies:
            if not isinstance(decode_reply(reply.body), Accepted):
                self.answered_us.setdefault(reply.message_id, now_us)
        books, fence = self.books.get(commit.run_id), commit.fence
        if fence is not None:
            assert books is not None
            if books.owner != fence.owner or books.state.next_event != fence.next_event or books.status != "open":
                raise Violation(
                    f"node {fence.owner} has committed to {books.workflow_id} from event {fence.next_event}, which was "
                    f"{books.status} at {books.state.next_event}, owned by {books.owner}"
                )
            parked = commit.release is not None and commit.release.error is not None
            if not parked or commit.count:
                books.claims = 0
            elif "Quarantined" not in commit.release.error and commit.run_id not in self.may_be_parked:  # type: ignore[union-attr, operator]
                raise Violation(f"run {books.workflow_id} is parked for nothing of its own: {commit.release.error}")  # type: ignore[union-attr]
        self.touched(commit.run_id)

    def claimed(self, claimed: Claimed, node: NodeId) -> None:
        books = self.books[claimed.run.run_id]
        if not self._db.is_alive(node):
            raise Violation(f"node {node} was declared dead, and has claimed {books.workflow_id} all the same")
        if books.owner is not None and self._db.is_alive(books.owner):
            raise Violation(f"node {node} has claimed {books.workflow_id} from node {books.owner}, which is alive")
        books.claims += 1
        self.touched(claimed.run.run_id)

    def touched(self, run_id: RunId) -> None:
        """Read a run again, and check all that must hold between two transactions."""
        found = self._db.rows(ROW, run_id)
        if not found:
            if run_id in self.books:
                raise Violation(f"the row of run {run_id} is gone")
            return
        books = self.books.get(run_id)
        if books is None:
            books = self.books[run_id] = Books(run_id)
        was_open = books.status == "open"
        self._read_journal(run_id, books)
        self._check_row(run_id, books, found[0])
        if books.status == "open":
            self._check_waiting(run_id, books, found[0])
        elif was_open and books.updates:
            self._check_open_updates(books)
        self._check_mail(run_id, books)

    def _read_journal(self, run_id: RunId, books: Books) -> None:
        rows = self._db.rows(JOURNAL, run_id)
        if rows[: len(books.rows)] != books.rows:
            raise Violation(f"the journal of {run_id} has changed where it was written already")
        for row in rows[len(books.rows) :]:
            self._enter(books, row)
        books.rows = rows
        try:
            check_state(books.state, books.events)
        except InvariantViolation as error:
            raise Violation(f"run {books.workflow_id or run_id}: {error}") from error

    def _enter(self, books: Books, row: tuple[Any, ...]) -> None:
        first_event, count, at_us, text = row
        events = decode_events(text.encode())
        if len(events) != count:
            raise Violation(f"a journal row says {count} events and holds {len(events)}")
        if at_us > max(self.latest_us, books.state.last_at_us):
            raise Violation(f"events were written for a time that has not come: {at_us - self.latest_us} us ahead")
        for index, event in enumerate(events):
            if first_event + index != books.state.next_event:
                raise Violation(
                    f"the journal has event {first_event + index} where {books.state.next_event} must follow"
                )
            item = HistoryEvent(first_event + index, at_us, event)
            try:
                books.state.apply(event, at_us)
            except OutlastError as error:
                raise Violation(f"event {item.position}: {error}") from error
            books.events.append(item)
            self.events += 1
            self._note_event(books, item)

    def _note_event(self, books: Books, item: HistoryEvent) -> None:
        match item.event:
            case ActivityCompleted(activity_id=activity_id):
                books.completed.add(activity_id)
            case ActivityAttemptLost(activity_id=activity_id, attempt=attempt):
                if (activity_id, attempt) in books.delivered:
                    raise Violation(
                        f"attempt {attempt} of {activity_id} in {books.workflow_id} is journaled as lost, but its "
                        "result was delivered"
                    )
            case (
                WorkflowExecutionCancelRequested(message_id=message_id)
                | WorkflowExecutionTerminated(message_id=message_id)
            ):
                books.seen.add(message_id)
            case WorkflowExecutionSignaled(message_id=message_id):
                books.seen.add(message_id)
            case WorkflowExecutionUpdateAccepted(message_id=message_id, arguments=arguments):
                books.seen.add(message_id)
                books.updates[message_id] = None
                if arguments.args[-1].to_bytes() == b"%d" % NEVER:
                    raise Violation(f"update {message_id} is never accepted, and is in the history")
            case WorkflowExecutionUpdateCompleted(message_id=message_id, failure=failure):
                books.updates[message_id] = item.event
                if failure is not None and not failure.type.endswith(EXPECTED_FAILURES):
                    raise Violation(f"update {message_id} failed with {failure.type}: {failure.message}")
            case MessageUnhandled(message=message):
                message_id = getattr(message, "message_id", "")
                books.seen.add(message_id)
                books.unhandled.add(message_id)
            case _:
                pass

    def _check_row(self, run_id: RunId, books: Books, row: tuple[Any, ...]) -> None:
        status, books.owner, next_event, _, closed_at_us, books.workflow_id, claims = row
        owner, books.status = books.owner, status
        if claims != books.claims:
            raise Violation(
                f"run {books.workflow_id} counts {claims} claims without progress; there were {books.claims}"
            )
        state = books.state
        if next_event != state.next_event:
            raise Violation(f"the row of {run_id} says next event {next_event}, its journal {state.next_event}")
        is_open = status == "open"
        if is_open is not (state.phase is Phase.OPEN):
            raise Violation(f"the row of {run_id} says {status}, its journal {state.phase.value}")
        if state.outcome is not None:
            if status != STATUS[type(state.outcome)]:
                raise Violation(f"the row of {run_id} says {status}, its journal {type(state.outcome).__name__}")
            if owner is not None or closed_at_us is None:
                raise Violation(f"the closed run {run_id} has owner {owner}, closed at {closed_at_us}")
            if left := self._db.rows(MAIL, run_id) + self._db.rows(TASKS, run_id):
                raise Violation(f"the closed run {run_id} has left mail or tasks behind: {left}")

    def _check_waiting(self, run_id: RunId, books: Books, row: tuple[Any, ...]) -> None:
        """Nobody owns it: then something is known that will bring it back."""
        _, owner, next_event, wake_at_us, _, _, _ = row
        if owner is not None:
            return
        parked = bool(self._db.rows(IS_PARKED, run_id, next_event))
        if parked:
            if wake_at_us is None:
                raise Violation(f"run {books.workflow_id} is parked and will never be tried again")
            return
        if self._db.rows(MAIL, run_id) and not self._db.rows(IS_WOKEN, run_id):
            raise Violation(f"run {books.workflow_id} has mail and no owner, and nobody will be told")
        due_us = self._due_us(run_id, books)
        if due_us is not None and (wake_at_us is None or wake_at_us > due_us):
            raise Violation(
                f"run {books.workflow_id} has something to do at {due_us}, nobody owns it, and it is to be woken at "
                f"{wake_at_us}"
            )

    def _due_us(self, run_id: RunId, books: Books) -> int | None:
        """When the run has to go on by itself, by its history and the tasks that are in other hands."""
        state = books.state
        if state.next_event == 2:
            return state.started_at_us
        tasks = {activity_id for activity_id, _ in self._db.rows(TASKS, run_id)}
        mailed = {
            message_id.split("/")[1] for (message_id,) in self._db.rows(MAIL, run_id) if message_id[:9] == "activity/"
        }
        times = [timer.fires_at_us for timer in state.timers.values()]
        for activity_id, pending in state.activities.items():
            if activity_id not in tasks and activity_id not in mailed:
                times.append(pending.not_before_us)
            deadline_us = pending.deadline_us()
            if deadline_us is not None:
                times.append(deadline_us)
        return min(times, default=None)

    def _check_mail(self, run_id: RunId, books: Books) -> None:
        if books.delivered and books.status == "open":
            for activity_id, attempt in self._db.rows(TASKS, run_id):
                if (activity_id, attempt) in books.delivered:
                    raise Violation(f"the result of attempt {attempt} of {activity_id} was delivered, its task is left")
        missing = books.messages - books.seen
        if missing:
            missing -= {message_id for (message_id,) in self._db.rows(MAIL, run_id)}
        if missing:
            raise Violation(
                f"run {books.workflow_id}: messages that were accepted are neither in its mailbox nor in its history: "
                f"{sorted(missing)}"
            )
        self._check_questions(run_id, books)

    def _check_questions(self, run_id: RunId, books: Books) -> None:
        if not books.questions:
            return
        over = books.questions - {message_id for (message_id,) in self._db.rows(MAIL, run_id)}
        for message_id in over:
            if self._reply_to(run_id, message_id) is None:
                raise Violation(f"run {books.workflow_id} has taken {message_id} from its mailbox, and left no reply")
        books.questions -= over

    def _reply_to(self, run_id: RunId, message_id: str) -> Reply | None:
        rows = self._db.rows(REPLY, reply_id(run_id, MessageId(message_id)))
        return decode_reply(rows[0][0].encode()) if rows else None

    def _check_open_updates(self, books: Books) -> None:
        """The run has just ended."""
        for message_id, end in books.updates.items():
            reply = self._reply_to(books.state.run_id, message_id)
            if end is None and not isinstance(reply, Ended | Recorded):
                raise Violation(
                    f"run {books.workflow_id} has ended, and update {message_id}, which was open, has {reply}"
                )

    # --- what the outside has been told -------------------------------------------------------------------------------

    def expect_started(self, run_id: RunId) -> None:
        books = self.books.get(run_id)
        if books is None or not books.events or not isinstance(books.events[0].event, WorkflowExecutionStarted):
            raise Violation(f"the start of run {run_id} was acknowledged, and it is not in the database")

    def expect_message(self, run_id: RunId, message_id: str) -> None:
        books = self.books.get(run_id)
        if books is None or message_id not in books.messages | books.asked:
            raise Violation(f"message {message_id} to run {run_id} was acknowledged, and the database never took it")

    def acknowledged(self, run_id: RunId, message_id: str) -> None:
        self.books[run_id].known.add(message_id)

    def known_of(self, run_id: RunId) -> set[str]:
        """What a query that is asked now must show."""
        return self.books[run_id].known.copy()

    def asks(self, run_id: RunId, message_id: str, now_us: int) -> Ask:
        ask = Ask(now_us)
        self.books[run_id].asks.setdefault(message_id, []).append(ask)
        return ask

    def expect_reply(self, run_id: RunId, reply: Reply) -> None:
        """Somebody was told this of an update."""
        books, message_id = self.books[run_id], reply.message_id
        if isinstance(reply, Refused):
            if not reply.failure.type.endswith("Refused"):
                raise Violation(f"update {message_id} was refused for no reason of its own: {reply.failure}")
            return
        if message_id not in books.updates:
            raise Violation(f"{reply} was told, and update {message_id} is not in the history of {books.workflow_id}")
        end = books.updates[message_id]
        match reply:
            case Accepted():
                pass
            case Answered(result=result):
                if end is None or end.failure is not None or end.result != result:
                    raise Violation(f"{reply} was told, and recorded is {end}")
                if result.to_bytes().decode() != f'"{message_id} is done"':
                    raise Violation(f"update {message_id} was answered with {result}")
            case Failed(failure=failure):
                if end is None or end.failure != failure:
                    raise Violation(f"{reply} was told, and recorded is {end}")
            case _:
                raise Violation(f"{reply} is no answer to an update")

    def expect_prompt(self, run_id: RunId, message_id: MessageId, since_us: int, now_us: int, within_us: int) -> None:
        """Nothing goes wrong since then, and now somebody hears of an answer."""
        answered_us = self.answered_us.get(reply_id(run_id, message_id))
        if answered_us is not None and now_us - max(answered_us, since_us) > within_us:
            raise Violation(f"an answer to {message_id} was there, and was told {(now_us - answered_us) / 1e6} s later")

    def expect_no_answer(self, run_id: RunId, message_id: str) -> None:
        """Somebody was told that the run has ended before it had done the update."""
        books = self.books[run_id]
        if books.status == "open":
            raise Violation(f"who asked for {message_id} was told that {books.workflow_id} has ended, and it has not")
        if books.updates.get(message_id) is not None:
            raise Violation(f"who asked for {message_id} was told that it was not done, and it was")

    def expect_shown(self, run_id: RunId, shown: list[str], must_show: set[str]) -> None:
        """A query has shown these messages, and was asked when it was known that the run has those."""
        books, what = self.books[run_id], set(shown)
        if len(what) != len(shown):
            raise Violation(f"run {books.workflow_id} has handled a message twice: {shown}")
        if unrecorded := what - books.seen:
            raise Violation(f"a query has shown what is not recorded of {books.workflow_id}: {sorted(unrecorded)}")
        if hidden := must_show - books.unhandled - what:
            raise Violation(
                f"a query has not shown what was known of {books.workflow_id} before it was asked: {sorted(hidden)}"
            )
        books.known |= what

    def expect_outcome(self, run_id: RunId, outcome: object) -> None:
        books = self.books.get(run_id)
        if books is None or books.state.outcome is None:
            raise Violation(f"run {run_id} was reported as ended, and by the database it has not")
        if books.state.outcome != outcome:
            raise Violation(f"run {run_id} was reported to end with {outcome}, recorded is {books.state.outcome}")

    def open_runs(self) -> list[RunId]:
        return [run_id for run_id, books in self.books.items() if books.status == "open"]

    # --- at the end ---------------------------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """Everything has ended: nothing is left over, and every history replays."""
        for table in ("mailbox", "tasks", "woken"):
            if rows := self._db.rows(f"SELECT * FROM {table}"):
                raise Violation(f"everything has ended, but {table} holds {rows}")
        for run_id, books in self.books.items():
            self.touched(run_id)
            self._check_failure(books)
            self._check_refusals(books)
            self._check_replay(run_id, books, len(books.rows))
            if len(books.rows) > 2:
                self._check_replay(run_id, books, 1 + books.state.next_event % (len(books.rows) - 1))

    def _check_failure(self, books: Books) -> None:
        outcome = books.state.outcome
        if isinstance(outcome, WorkflowExecutionFailed):
            kind = outcome.failure.type
            if not any(kind.endswith(each) for each in EXPECTED_FAILURES):
                raise Violation(f"run {books.workflow_id} failed with {kind}: {outcome.failure.message}")

    def _check_refusals(self, books: Books) -> None:
        for message_id, asks in books.asks.items():
            all_refused = all(ask.answer == "refused" and not ask.unknown for ask in asks)
            if all_refused and message_id in books.updates:
                raise Violation(f"all who asked for {message_id} were told that it is refused, and it was done")

    def _check_replay(self, run_id: RunId, books: Books, rows: int) -> None:
        """The code, fed the first `rows` turns, asks for what is recorded in them."""
        length = sum(count for _, count, _, _ in books.rows[:rows])
        history = books.events[:length]
        started = history[0].event
        assert isinstance(started, WorkflowExecutionStarted)
        target = registry().workflow(started.workflow)
        program = PythonProgram(target, started, run_id, DEFAULT_NAMESPACE, history[0].at_us)
        try:
            replay(RunState(run_id), program, history)
        except OutlastError as error:
            raise Violation(f"the first {rows} turns of {books.workflow_id} do not replay: {error}") from error
        finally:
            program.close()


def registry() -> Registry:
    global _registry
    if _registry is None:
        _registry = Registry(*EVERYTHING)
    return _registry


class Witness:
    """Who sees activities begin: the oracle outside. By idempotency key."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self.begun: dict[tuple[str, int], str] = {}
        """Attempts whose code was entered by a member, and by whom."""
        self.zombies = 0

    def began(self, who: str, is_member: bool, key: str, attempt: int, run_id: RunId, activity_id: str) -> None:
        books = self._checks.books.get(run_id)
        if books is None:
            raise Violation(f"activity {key} began, and its run is not in the database")
        if not is_member:
            self.zombies += 1
            return
        if activity_id in books.completed:
            raise Violation(
                f"activity {key} began again (attempt {attempt}, on {who}) after its completion was recorded"
            )
        if not any(getattr(item.event, "activity_id", None) == activity_id for item in books.events):
            raise Violation(f"activity {key} began on {who} before its schedule was in the journal")
        pending = books.state.activities.get(activity_id)  # type: ignore[call-overload]
        if pending is not None and pending.attempt != attempt:
            raise Violation(
                f"attempt {attempt} of activity {key} began on {who}, and by the journal it is at {pending.attempt}"
            )
        before = self.begun.setdefault((key, attempt), who)
        if before is not who:
            raise Violation(f"attempt {attempt} of activity {key} began on {before}, and again on {who}")
