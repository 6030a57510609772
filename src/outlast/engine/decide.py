"""Decide: take the inputs that wait for a run, and say what is to be written and what may happen after that.

Theory of operation
===================
A *turn* takes inputs one at a time. For each, the table `INPUTS` says what it becomes: an event that is fed to the
program, a note about an attempt, or nothing if it is stale (the activity has ended, the timer was cancelled, the
message is in the history already). The program answers a fed event with commands; the table `COMMANDS` turns each
into an event. All of it is one `Decision`, which the caller commits as a whole, or throws away with the state.

What always holds:
- Nothing in a decision may leave before its events are on disk: attempts to dispatch, alarms to set, answers.
- All events of a turn have the same time, which is never before that of an earlier event.
- A timer never fires early: an alarm that comes too soon (the clock was set back) is set again.
- An input that is not in the table is an error of ours, and changes nothing.
- A query changes nothing, and neither does an update that the program refuses. Both are answered all the same, and so
  is every update that was accepted: at its end, or when the run ends.
- Once the run is closed, the inputs that are left are not taken: mail among them is found by the commit (see
  `store.api`), and comes back through `close_with_mail`.

Refused: to let the program see attempts of activities. It would then have to be replayed with them, and a retry
would cost a turn of user code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from outlast.engine.program import Program
from outlast.engine.run import PendingActivity, Phase, RunState
from outlast.model.commands import (
    CancelActivity,
    CancelTimer,
    CancelWorkflow,
    Command,
    CompleteUpdate,
    CompleteWorkflow,
    EndWait,
    FailWorkflow,
    ScheduleActivity,
    StartTimer,
    StartWait,
)
from outlast.model.errors import InternalError
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Event,
    InputEvent,
    MessageUnhandled,
    TerminalEvent,
    TimerCancelled,
    TimerFired,
    TimerStarted,
    WaitEnded,
    WaitStarted,
    WorkflowExecutionCancelled,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionSignaled,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.failures import Failure, FailureKind
from outlast.model.ids import ActivityId, MessageId
from outlast.model.inputs import (
    ActivityDeadlinePassed,
    AttemptFailed,
    AttemptLost,
    AttemptSucceeded,
    CancelRequested,
    Input,
    Message,
    QueryRequested,
    SignalReceived,
    TerminateRequested,
    TimerDue,
    UpdateRequested,
)
from outlast.model.replies import Accepted, Answered, Ended, Failed, Recorded, Refused, Reply


class Decision:
    """One turn: what to commit (`events`), and what may happen after the commit (the rest)."""

    __slots__ = ("alarms", "at_us", "dispatch", "events", "first_event", "outcome", "replies", "stop", "taken")

    def __init__(self, first_event: int, at_us: int) -> None:
        self.first_event = first_event
        self.at_us = at_us
        self.events: list[Event] = []
        self.taken = 0
        """How many of the inputs were taken, from the front. Fewer than given only if the run closed."""
        self.dispatch: list[ActivityId] = []
        """Activities whose next attempt may start, not before `PendingActivity.not_before_us`."""
        self.stop: list[ActivityId] = []
        """Activities whose running attempt, if any, is to be stopped: its result would be dropped."""
        self.alarms: list[tuple[int, TimerDue | ActivityDeadlinePassed]] = []
        """Inputs to give back at a time."""
        self.replies: dict[MessageId, Reply] = {}
        """Answers to queries and updates; the last one for each."""
        self.outcome: TerminalEvent | None = None
        """How the run ended, if it did."""


def begin(state: RunState, program: Program, started: WorkflowExecutionStarted, now_us: int) -> Decision:
    """The first turn of a new run, together with its first event: for a starter that hosts the workflow itself."""
    turn = _Turn(state, program, now_us)
    turn.record(started)
    turn.feed(started, turn.at_us)
    return turn.finish()


def first_turn(state: RunState, program: Program, now_us: int) -> Decision:
    """The first turn of a run whose first event was written by somebody else.

    The program is fed the start at the time at which it was written, as every replay will do.
    """
    assert state.started is not None
    assert state.next_event == 2
    turn = _Turn(state, program, now_us)
    turn.feed(state.started, state.started_at_us)
    return turn.finish()


def take_turn(state: RunState, program: Program, inputs: Sequence[Input], now_us: int) -> Decision:
    """Take inputs in their order until they are used up or the run is closed. What the program raises escapes."""
    turn = _Turn(state, program, now_us)
    for item in inputs:
        if state.phase is not Phase.OPEN:
            break
        handler = INPUTS.get(type(item))
        if handler is None:
            raise InternalError(f"{type(item).__name__} is no input of a run")
        handler(turn, item)
        turn.decision.taken += 1
    return turn.finish()


def close_with_mail(state: RunState, decision: Decision, mail: Sequence[Message]) -> None:
    """Put messages that came while the run closed into its history, before the terminal event.

    The program has finished and cannot handle them; that they were acknowledged is kept all the same. Queries and
    updates were not: whoever asked is told that the run has ended.
    """
    assert decision.outcome is not None
    notes: list[Event] = []
    for message in mail:
        if isinstance(message, QueryRequested | UpdateRequested):
            over = isinstance(message, UpdateRequested) and message.message_id in state.recent_messages
            reply = Recorded(message.message_id) if over else Ended(message.message_id)
            decision.replies.setdefault(message.message_id, reply)
            continue
        message_id = getattr(message, "message_id", None)
        if message_id is not None and message_id not in state.recent_messages:
            state.recent_messages[message_id] = None
            notes.append(MessageUnhandled(message=message))
    decision.events[-1:-1] = notes
    state.next_event += len(notes)


def resume_work(state: RunState, decision: Decision) -> None:
    """Ask for everything that an open run waits for by itself: after its history was folded by a new owner."""
    decision.dispatch.extend(state.activities)
    for activity_id, pending in state.activities.items():
        deadline = pending.deadline_us()
        if deadline is not None:
            decision.alarms.append((deadline, ActivityDeadlinePassed(activity_id)))
    for timer_id, timer in state.timers.items():
        decision.alarms.append((timer.fires_at_us, TimerDue(timer_id)))


class _Turn:
    """What is being decided. Handlers below record events, feed the program, and note effects."""

    __slots__ = ("at_us", "decision", "program", "state")

    def __init__(self, state: RunState, program: Program, now_us: int) -> None:
        self.state = state
        self.program = program
        self.at_us = max(now_us, state.last_at_us)
        self.decision = Decision(state.next_event, self.at_us)

    def record(self, event: Event) -> None:
        self.state.apply(event, self.at_us)
        self.decision.events.append(event)

    def feed(self, event: InputEvent, at_us: int) -> None:
        for command in self.program.feed(event, at_us, replaying=False):
            handler = COMMANDS.get(type(command))
            if handler is None:
                raise InternalError(f"{type(command).__name__} is no command, but the program asked for it")
            handler(self, command)

    def input(self, event: InputEvent) -> None:
        self.record(event)
        self.feed(event, self.at_us)

    def dispatch(self, activity_id: ActivityId) -> None:
        """Another attempt. Two may have ended in one turn; only the one that comes after both may start."""
        if activity_id not in self.decision.dispatch:
            self.decision.dispatch.append(activity_id)

    def reply(self, reply: Reply) -> None:
        self.decision.replies[reply.message_id] = reply

    def close(self, event: TerminalEvent) -> None:
        self.decision.stop.extend(self.state.activities)
        for message_id in self.state.updates:
            self.reply(Ended(message_id))
        self.record(event)
        self.decision.outcome = event

    def finish(self) -> Decision:
        decision = self.decision
        if decision.dispatch:
            decision.dispatch = [each for each in decision.dispatch if each in self.state.activities]
        return decision


# --- inputs ---------------------------------------------------------------------------------------------------------


def _current(turn: _Turn, activity_id: ActivityId, attempt: int) -> PendingActivity | None:
    """The pending activity, if `attempt` is the one whose end is awaited; else what was reported is stale."""
    pending = turn.state.activities.get(activity_id)
    return pending if pending is not None and pending.attempt == attempt else None


def _attempt_succeeded(turn: _Turn, item: AttemptSucceeded) -> None:
    if _current(turn, item.activity_id, item.attempt) is not None:
        turn.input(ActivityCompleted(item.activity_id, item.started_at_us, item.result, item.attempt))


def _attempt_failed(turn: _Turn, item: AttemptFailed) -> None:
    pending = _current(turn, item.activity_id, item.attempt)
    if pending is None:
        return
    failure = item.failure
    retry = pending.scheduled.retry
    if failure.retry_after_us is None:
        delay_us = retry.delay_us(item.attempt, item.jitter)
    else:
        delay_us = max(0, failure.retry_after_us)
    retry_at_us = turn.at_us + delay_us
    is_final = failure.non_retryable or failure.type in retry.non_retryable
    if is_final or not _may_retry(pending, retry_at_us):
        turn.input(ActivityFailed(item.activity_id, failure, item.attempt, item.started_at_us))
        return
    turn.record(ActivityAttemptFailed(item.activity_id, item.attempt, item.started_at_us, failure, retry_at_us))
    turn.dispatch(item.activity_id)


def _attempt_lost(turn: _Turn, item: AttemptLost) -> None:
    pending = _current(turn, item.activity_id, item.attempt)
    if pending is None:
        return
    # The first loss is most often an innocent bystander of a crash or a deploy: go on at once. Who is lost again
    # and again is perhaps the one that kills its process: make it rarer.
    delay_us = 0 if item.attempt == 1 else pending.scheduled.retry.delay_us(item.attempt - 1, item.jitter)
    retry_at_us = turn.at_us + delay_us
    if not _may_retry(pending, retry_at_us):
        failure = Failure("ActivityLost", f"attempt {item.attempt} was lost: {item.reason}", FailureKind.LOST)
        turn.input(ActivityFailed(item.activity_id, failure, item.attempt))
        return
    turn.record(ActivityAttemptLost(item.activity_id, item.attempt, retry_at_us, item.reason))
    turn.dispatch(item.activity_id)


def _may_retry(pending: PendingActivity, retry_at_us: int) -> bool:
    deadline_us = pending.deadline_us()
    in_time = deadline_us is None or retry_at_us < deadline_us
    return in_time and pending.scheduled.retry.allows_another(pending.attempt)


def _activity_deadline_passed(turn: _Turn, item: ActivityDeadlinePassed) -> None:
    pending = turn.state.activities.get(item.activity_id)
    deadline_us = None if pending is None else pending.deadline_us()
    if pending is None or deadline_us is None:
        return
    if turn.at_us < deadline_us:
        turn.decision.alarms.append((deadline_us, item))
        return
    message = f"not done within its schedule-to-close timeout of {deadline_us - pending.scheduled_at_us} us"
    turn.decision.stop.append(item.activity_id)
    turn.input(
        ActivityFailed(item.activity_id, Failure("ActivityTimeout", message, FailureKind.TIMEOUT), pending.attempt)
    )


def _timer_due(turn: _Turn, item: TimerDue) -> None:
    timer = turn.state.timers.get(item.timer_id)
    if timer is None:
        return
    if turn.at_us < timer.fires_at_us:
        turn.decision.alarms.append((timer.fires_at_us, item))
        return
    turn.input(TimerFired(item.timer_id))


def _cancel_requested(turn: _Turn, item: CancelRequested) -> None:
    if item.message_id not in turn.state.recent_messages:
        turn.input(WorkflowExecutionCancelRequested(item.message_id, item.reason))


def _terminate_requested(turn: _Turn, item: TerminateRequested) -> None:
    if item.message_id not in turn.state.recent_messages:
        turn.close(WorkflowExecutionTerminated(item.message_id, item.reason))


def _signal_received(turn: _Turn, item: SignalReceived) -> None:
    if item.message_id not in turn.state.recent_messages:
        turn.input(WorkflowExecutionSignaled(item.message_id, item.signal, item.arguments))


def _update_requested(turn: _Turn, item: UpdateRequested) -> None:
    message_id, state = item.message_id, turn.state
    if message_id in state.updates:
        turn.decision.replies.setdefault(message_id, Accepted(message_id))
        return
    if message_id in state.recent_messages:
        turn.decision.replies.setdefault(message_id, Recorded(message_id))
        return
    failure = turn.program.refuse_update(item.update, item.arguments)
    if failure is not None:
        turn.reply(Refused(message_id, failure))
        return
    turn.reply(Accepted(message_id))
    turn.input(WorkflowExecutionUpdateAccepted(message_id, item.update, item.arguments))


def _query_requested(turn: _Turn, item: QueryRequested) -> None:
    answer = turn.program.answer_query(item.query, item.arguments)
    if isinstance(answer, Failure):
        turn.reply(Failed(item.message_id, answer))
    else:
        turn.reply(Answered(item.message_id, answer))


INPUTS: dict[type, Callable[[_Turn, Any], None]] = {
    AttemptSucceeded: _attempt_succeeded,
    AttemptFailed: _attempt_failed,
    AttemptLost: _attempt_lost,
    ActivityDeadlinePassed: _activity_deadline_passed,
    TimerDue: _timer_due,
    CancelRequested: _cancel_requested,
    TerminateRequested: _terminate_requested,
    SignalReceived: _signal_received,
    UpdateRequested: _update_requested,
    QueryRequested: _query_requested,
}


# --- commands -------------------------------------------------------------------------------------------------------


def _schedule_activity(turn: _Turn, command: ScheduleActivity) -> None:
    turn.record(
        ActivityScheduled(
            command.activity_id,
            command.activity,
            command.arguments,
            command.queue,
            command.label,
            command.retry,
            command.start_to_close_us,
            command.schedule_to_close_us,
        )
    )
    turn.decision.dispatch.append(command.activity_id)
    if command.schedule_to_close_us is not None:
        deadline_us = turn.at_us + command.schedule_to_close_us
        turn.decision.alarms.append((deadline_us, ActivityDeadlinePassed(command.activity_id)))


def _cancel_activity(turn: _Turn, command: CancelActivity) -> None:
    turn.record(ActivityCancelled(command.activity_id))
    turn.decision.stop.append(command.activity_id)


def _start_timer(turn: _Turn, command: StartTimer) -> None:
    fires_at_us = turn.at_us + command.delay_us
    turn.record(TimerStarted(command.timer_id, command.delay_us, fires_at_us, command.label))
    turn.decision.alarms.append((fires_at_us, TimerDue(command.timer_id)))


def _cancel_timer(turn: _Turn, command: CancelTimer) -> None:
    turn.record(TimerCancelled(command.timer_id))


def _start_wait(turn: _Turn, command: StartWait) -> None:
    turn.record(WaitStarted(command.wait_id, command.label))


def _end_wait(turn: _Turn, command: EndWait) -> None:
    turn.record(WaitEnded(command.wait_id))


def _complete_update(turn: _Turn, command: CompleteUpdate) -> None:
    message_id, failure = command.message_id, command.failure
    turn.record(WorkflowExecutionUpdateCompleted(message_id, command.result, failure))
    turn.reply(Answered(message_id, command.result) if failure is None else Failed(message_id, failure))


def _complete_workflow(turn: _Turn, command: CompleteWorkflow) -> None:
    turn.close(WorkflowExecutionCompleted(command.result))


def _fail_workflow(turn: _Turn, command: FailWorkflow) -> None:
    turn.close(WorkflowExecutionFailed(command.failure))


def _cancel_workflow(turn: _Turn, command: CancelWorkflow) -> None:
    turn.close(WorkflowExecutionCancelled())


COMMANDS: dict[type[Command], Callable[[_Turn, Any], None]] = {
    ScheduleActivity: _schedule_activity,
    CancelActivity: _cancel_activity,
    StartTimer: _start_timer,
    CancelTimer: _cancel_timer,
    StartWait: _start_wait,
    EndWait: _end_wait,
    CompleteUpdate: _complete_update,
    CompleteWorkflow: _complete_workflow,
    FailWorkflow: _fail_workflow,
    CancelWorkflow: _cancel_workflow,
}
