"""A program that reads what to do next from a tape of numbers, and a world that drives it.

The program asks for anything that a program may ask for, depending on nothing but the tape, the events and their
times. When the tape is used up it ends the run at the next event. Shorter tapes of smaller numbers do less, so that
hypothesis finds small examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.scripted import RUN, STARTED, Journal, snapshot
from outlast.engine.decide import Decision, begin, close_with_mail, first_turn, resume_work, take_turn
from outlast.engine.invariants import check_history, check_state
from outlast.engine.replay import replay
from outlast.engine.run import Phase, RunState
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
from outlast.model.events import (
    ActivityCompleted,
    ActivityFailed,
    InputEvent,
    TimerFired,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, MessageId, TimerId, WaitId
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
from outlast.model.payloads import NO_ARGUMENTS, NULL, Arguments, Payload
from outlast.model.policies import RetryPolicy
from outlast.model.replies import Accepted, Answered, Ended, Failed, Recorded, Refused, Reply

OOPS = Failure("builtins:OSError", "disk full")
START_US = 1_000_000
ENDS = 29
"""Of thirty plans for an event, the one that ends the run."""


class TapeProgram:
    def __init__(self, tape: Sequence[int]) -> None:
        self._tape = list(tape)
        self._count = 0
        self._activities: list[ActivityId] = []
        self._timers: list[TimerId] = []
        self._waits: list[WaitId] = []
        self._updates: list[MessageId] = []
        self._asked_to_cancel = False
        self.fed: list[InputEvent] = []
        self.answers: list[list[Command]] = []

    def feed(self, event: InputEvent, at_us: int, *, replaying: bool) -> Sequence[Command]:
        self.fed.append(event)
        self._take(event)
        plan = self._next() % 30 if self._tape else ENDS
        answer = [self._end(at_us)] if plan == ENDS else [self._command() for _ in range(plan % 4)]
        self.answers.append(answer)
        return answer

    def refuse_update(self, update: str, arguments: Arguments) -> Failure | None:
        return OOPS if len(self._tape) % 4 == 3 else None

    def answer_query(self, query: str, arguments: Arguments) -> Payload | Failure:
        return OOPS if len(self._tape) % 4 == 3 else self.progress()

    def progress(self) -> Payload:
        """Where it is: changes with all that it does."""
        return Payload.from_json(b"[%d, %d, %d]" % (len(self._tape), self._count, len(self._updates)))

    def whereabouts(self) -> str:
        return "tape"

    def close(self) -> None:
        pass

    def _next(self) -> int:
        return self._tape.pop(0) if self._tape else 0

    def _take(self, event: InputEvent) -> None:
        match event:
            case ActivityCompleted() | ActivityFailed():
                self._activities.remove(event.activity_id)
            case TimerFired():
                self._timers.remove(event.timer_id)
            case WorkflowExecutionCancelRequested():
                self._asked_to_cancel = True
            case WorkflowExecutionUpdateAccepted():
                self._updates.append(event.message_id)
            case _:
                pass

    def _command(self) -> Command:
        match self._next() % 10:
            case 1 if self._activities:
                return CancelActivity(activity_id=self._activities.pop(self._next() % len(self._activities)))
            case 2 | 3:
                timer_id = TimerId(self._new_id())
                self._timers.append(timer_id)
                return StartTimer(timer_id=timer_id, delay_us=self._next())
            case 4 if self._timers:
                return CancelTimer(timer_id=self._timers.pop(self._next() % len(self._timers)))
            case 5:
                wait_id = WaitId(self._new_id())
                self._waits.append(wait_id)
                return StartWait(wait_id=wait_id, label="approval")
            case 6 if self._waits:
                return EndWait(wait_id=self._waits.pop(self._next() % len(self._waits)))
            case 7 | 8 if self._updates:
                message_id = self._updates.pop(self._next() % len(self._updates))
                if self._next() % 3:
                    return CompleteUpdate(message_id=message_id, result=self.progress())
                return CompleteUpdate(message_id=message_id, failure=OOPS)
            case _:
                return self._schedule()

    def _schedule(self) -> ScheduleActivity:
        activity_id = ActivityId(self._new_id())
        self._activities.append(activity_id)
        shape = self._next()
        retry = RetryPolicy(initial_interval_us=shape, max_interval_us=200, max_attempts=shape % 4, jitter=0.5)
        return ScheduleActivity(
            activity_id=activity_id,
            activity=f"activity-{shape % 3}",
            arguments=NO_ARGUMENTS,
            retry=retry,
            schedule_to_close_us=shape * 3 if shape % 5 == 4 else None,
        )

    def _new_id(self) -> str:
        self._count += 1
        return str(self._count)

    def _end(self, at_us: int) -> Command:
        if self._asked_to_cancel and at_us % 3 == 1:
            return CancelWorkflow()
        return FailWorkflow(failure=OOPS) if at_us % 2 else CompleteWorkflow(result=NULL)


KINDS = 20
MAIL = 11
"""From here on up to 15: messages."""


class Step(NamedTuple):
    """One thing that happens, in numbers: what they mean depends on the state that they meet."""

    kind: int
    which: int
    variant: int


class Turn(NamedTuple):
    passed_us: int
    """May be negative: the clock was set back."""
    steps: list[Step]
    late: list[Step]
    """Mail that is found if the turn closes the run."""


class World:
    """One run with its journal, and what was promised to the outside: attempts under way, alarms that are set."""

    def __init__(self, tape: Sequence[int], *, hosted_by_starter: bool = True, talkative: bool = False) -> None:
        self.tape = tape
        self.sent: list[MessageId] | None = [] if talkative else None
        """With so many messages that a run forgets some, only those come again that it has to know still."""
        self.now_us = START_US
        self.journal = Journal()
        self.state = RunState(RUN)
        self.program = TapeProgram(tape)
        self.under_way: dict[ActivityId, int] = {}
        self.alarms: set[tuple[int, Input]] = set()
        self.awaited: set[MessageId] = set()
        """Updates whose senders were told that they are accepted, and nothing more."""
        self.boundaries: list[tuple[dict[str, object], list[list[Command]]]] = []
        """After each turn: the state, and all that the program has asked for so far."""
        if hosted_by_starter:
            self.commit(begin(self.state, self.program, STARTED, self.now_us))
        else:
            self._start_without_owner()

    def _start_without_owner(self) -> None:
        written = Decision(1, self.now_us)
        written.events.append(STARTED)
        self.journal.write(written)
        replay(self.state, self.program, self.journal.read())
        assert self.program.fed == []
        self.boundaries.append((snapshot(self.state), []))
        self.now_us += 77
        self.commit(first_turn(self.state, self.program, self.now_us))

    # --- one turn ----------------------------------------------------------------------------------------------------

    def turn(self, turn: Turn) -> Decision:
        self.now_us += turn.passed_us
        inputs = [self.input(step) for step in turn.steps]
        before, progress = snapshot(self.state), self.program.progress()
        awaited = set(self.awaited)
        decision = take_turn(self.state, self.program, inputs, self.now_us)
        taken = inputs[: decision.taken]
        for item in taken:
            self._given_back(item)
        if decision.outcome is not None:
            rest = [each for each in inputs[decision.taken :] if isinstance(each, Message)]
            late = [each for step in turn.late if isinstance(each := self.input(step._replace(kind=MAIL)), Message)]
            close_with_mail(self.state, decision, rest)
            close_with_mail(self.state, decision, late)
            taken += [*rest, *late]
        elif not decision.events:
            assert snapshot(self.state) == before
            assert self.program.progress() == progress
        self.commit(decision)
        self._check_replies(decision, taken, awaited)
        return decision

    def _given_back(self, item: Input) -> None:
        """An alarm that went off is no longer set; an attempt that was reported is no longer under way."""
        match item:
            case TimerDue() | ActivityDeadlinePassed():
                self.alarms = {each for each in self.alarms if each[1] != item}
            case AttemptSucceeded() | AttemptFailed() | AttemptLost():
                if self.under_way.get(item.activity_id) == item.attempt:
                    del self.under_way[item.activity_id]
            case _:
                pass

    def commit(self, decision: Decision) -> None:
        self.journal.write(decision)
        self._let_effects_leave(decision)
        history = self.journal.read()
        check_state(self.state, history)
        if decision.events:
            self.boundaries.append((snapshot(self.state), [list(each) for each in self.program.answers]))
        folded = RunState(RUN)
        for item in history:
            folded.apply(item.event, item.at_us)
        assert snapshot(folded) == snapshot(self.state)
        self._check_promises()

    def _let_effects_leave(self, decision: Decision) -> None:
        for activity_id in decision.stop:
            self.under_way.pop(activity_id, None)
        for activity_id in decision.dispatch:
            pending = self.state.activities[activity_id]
            assert activity_id not in self.under_way, "an attempt is dispatched while another is under way"
            self.under_way[activity_id] = pending.attempt
        self.alarms.update(decision.alarms)
        for message_id, reply in decision.replies.items():
            assert reply.message_id == message_id
            if isinstance(reply, Accepted):
                self.awaited.add(message_id)
            else:
                self.awaited.discard(message_id)

    def _check_promises(self) -> None:
        """Nothing that the run waits for is stranded, and nothing runs that nobody waits for."""
        awaited = {activity_id: pending.attempt for activity_id, pending in self.state.activities.items()}
        assert self.under_way == awaited
        assert self.awaited == set(self.state.updates)
        for timer_id, timer in self.state.timers.items():
            assert (timer.fires_at_us, TimerDue(timer_id)) in self.alarms
        for activity_id, pending in self.state.activities.items():
            deadline_us = pending.deadline_us()
            if deadline_us is not None:
                assert (deadline_us, ActivityDeadlinePassed(activity_id)) in self.alarms

    def _check_replies(self, decision: Decision, inputs: Sequence[Input], awaited: set[MessageId]) -> None:
        """Whoever asked has one answer, whoever waited has one at the end, and nobody else. They tell what is true."""
        queries = {each.message_id for each in inputs if isinstance(each, QueryRequested)}
        updates = {each.message_id for each in inputs if isinstance(each, UpdateRequested)}
        assert queries | updates <= set(decision.replies) <= queries | updates | awaited
        ends = [each.event for each in self.journal.read()]
        known = {each.message_id for each in ends if isinstance(each, WorkflowExecutionUpdateAccepted)}
        answers: dict[MessageId, Reply] = {
            each.message_id: Answered(each.message_id, each.result)
            if each.failure is None
            else Failed(each.message_id, each.failure)
            for each in ends
            if isinstance(each, WorkflowExecutionUpdateCompleted)
        }
        for message_id, reply in decision.replies.items():
            if message_id in queries:
                assert isinstance(reply, Answered | Failed | Ended)
                continue
            match reply:
                case Answered() | Failed():
                    assert reply == answers[message_id]
                case Accepted():
                    assert message_id in self.state.updates
                case Refused():
                    assert message_id not in known
                case Ended():
                    assert self.state.phase is Phase.CLOSED
                    assert message_id not in answers
                case Recorded():
                    assert message_id not in self.state.updates
                    assert message_id in self.state.recent_messages

    # --- inputs ------------------------------------------------------------------------------------------------------

    def input(self, step: Step) -> Input:
        if MAIL <= step.kind < 16 or (self.sent is not None and step.kind % 2):
            return self._message(step)
        activity_id, attempt = self._activity(step)
        jitter = (step.variant % 10) / 10
        match step.kind:
            case 2 | 3:
                failure = Failure("builtins:OSError", "disk full", non_retryable=step.variant % 7 == 6)
                return AttemptFailed(activity_id, attempt, self.now_us, failure, jitter)
            case 4 | 5:
                return AttemptLost(activity_id, attempt, "killed", jitter)
            case 6 | 7:
                return ActivityDeadlinePassed(activity_id)
            case 8 | 9 | 10:
                timers = [*self.state.timers, TimerId("no such timer"), TimerId("1")]
                return TimerDue(timers[step.which % len(timers)])
            case _:
                return AttemptSucceeded(activity_id, attempt, self.now_us, NULL)

    def _message(self, step: Step) -> Input:
        """All but queries share their ids, so that many come again, as what they were or as something else."""
        message_id = MessageId(f"m{step.which}") if self.sent is None else self._never_too_old(self.sent, step.which)
        match step.variant % 27:
            case 0:
                return TerminateRequested(message_id)
            case 1 | 2 | 3 | 4:
                return CancelRequested(message_id)
            case 5 | 6 | 7 | 8 | 9 | 10:
                return SignalReceived(message_id, "tick")
            case 11 | 12 | 13 | 14:
                return QueryRequested(MessageId(f"q{step.which}"), "progress")
            case _:
                return UpdateRequested(message_id, "reprice")

    def _never_too_old(self, sent: list[MessageId], which: int) -> MessageId:
        """A new id, one of the last, or that of an update that may have been accepted long ago."""
        again = sent[-3:] if which in (6, 7, 8) else list(self.state.updates) if which > 8 else []
        if again:
            return again[which % len(again)]
        sent.append(MessageId(f"m{len(sent)}"))
        return sent[-1]

    def _activity(self, step: Step) -> tuple[ActivityId, int]:
        """Mostly one that is pending, at its attempt; else one that ended, or never was, or another attempt."""
        known = [*self.state.activities, *self.state.activities, ActivityId("1"), ActivityId("no such activity")]
        activity_id = known[step.which % len(known)]
        pending = self.state.activities.get(activity_id)
        attempt = 1 if pending is None else pending.attempt
        return activity_id, attempt + {5: -1, 6: 1}.get(step.variant % 8, 0)

    # --- crashes -----------------------------------------------------------------------------------------------------

    def crashed_after(self, turns: int) -> World:
        """What a new owner makes of the first turns of the journal: it replays them, and counts attempts as lost."""
        world = World.__new__(World)
        world.tape = self.tape
        world.sent = self.sent
        world.journal = Journal()
        world.journal.rows = self.journal.rows[:turns]
        world.now_us = self.now_us
        world.boundaries = []
        world.reload()
        return world

    def reload(self) -> None:
        """Forget the state and the program, and bring them back from the journal."""
        self.state, self.program = RunState(RUN), TapeProgram(self.tape)
        self.under_way, self.alarms = {}, set()
        replay(self.state, self.program, self.journal.read())
        self.awaited = set(self.state.updates)
        if self.state.phase is not Phase.OPEN:
            return
        if self.state.next_event == 2:
            self.commit(first_turn(self.state, self.program, self.now_us))
            return
        lost: list[Input] = [
            AttemptLost(activity_id, pending.attempt, "its process is gone", 0.5)
            for activity_id, pending in self.state.activities.items()
            if pending.not_before_us <= self.now_us
        ]
        decision = take_turn(self.state, self.program, lost, self.now_us)
        decision.dispatch.clear()
        decision.alarms.clear()
        resume_work(self.state, decision)
        self.commit(decision)

    def run_to_its_end(self) -> int:
        """Do what a kind world does: attempts succeed, alarms go off in time. The number of turns that it took."""
        for number in range(1_000):
            if self.state.phase is Phase.CLOSED:
                return number
            self._kind_turn(number)
        raise AssertionError("the run does not end")

    def _kind_turn(self, number: int) -> None:
        inputs: list[Input] = [AttemptSucceeded(each, attempt, 0, NULL) for each, attempt in self.under_way.items()]
        if not inputs and self.alarms:
            at_us, item = min(self.alarms, key=lambda each: (each[0], repr(each[1])))
            self.now_us = max(self.now_us, at_us)
            inputs = [item]
        if not inputs:
            inputs = [CancelRequested(MessageId(f"wake-up {number}"))]
        decision = take_turn(self.state, self.program, inputs, self.now_us)
        for item in inputs:
            self._given_back(item)
        self.commit(decision)


def check_every_prefix(world: World) -> None:
    """Replay the journal up to every turn: the state and the commands must be those of that turn."""
    turns = len(world.journal.rows)
    assert len(world.boundaries) == turns
    for count, (state, answers) in enumerate(world.boundaries, start=1):
        prefix = world.journal.read(count)
        check_history(prefix)
        replayed, program = RunState(RUN), TapeProgram(world.tape)
        replay(replayed, program, prefix)
        assert snapshot(replayed) == state
        assert program.answers == (answers if len(prefix) > 1 else [])
