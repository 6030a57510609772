"""Planted bugs: does the simulator find what it was built to find?

Each is a patch of the engine, the runtime or the store's SQL, made from here and only while a test runs. Their names
say what goes wrong; `tests/sim/test_planted_bugs.py` shows that each is found within its budget of seeds.
"""

from __future__ import annotations

import asyncio
import heapq
import importlib
import pkgutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from msgspec.structs import replace

import outlast.store
from outlast.engine import decide
from outlast.model.errors import CommitUnknown
from outlast.model.events import (
    ActivityCompleted,
    TimerFired,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionSignaled,
    WorkflowExecutionUpdateAccepted,
)
from outlast.model.ids import MessageId
from outlast.model.inputs import (
    AttemptSucceeded,
    CancelRequested,
    QueryRequested,
    SignalReceived,
    TimerDue,
    UpdateRequested,
)
from outlast.model.replies import Accepted, Refused
from outlast.runtime import (
    alarms,
    asking,
    committer,
    handover,
    hosted,
    loading,
    membership,
    messages,
    node,
    parking,
    strays,
    tasks,
)
from outlast.runtime.patience import patiently
from outlast.sdk import handling, program
from outlast.store import sqlite_claims, sqlite_procedures
from outlast.store.api import Answer, Fence, TaskClaim
from sim import checks, database, seam

Plant = Callable[[ExitStack], None]
BUGS: dict[str, Plant] = {}


def bug(name: str) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        BUGS[name] = plant
        return plant

    return register


@contextmanager
def planted(name: str) -> Generator[None]:
    with ExitStack() as stack:
        # Connections have the SQL compiled into them.
        stack.enter_context(mock.patch.object(database, "_kept", {}))
        stack.callback(database.close_kept)
        BUGS[name](stack)
        yield


def swap(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(owner, name, value))


def rewrite(stack: ExitStack, name: str, old: str, new: str) -> None:
    """Change a statement of the store. A statement that has changed since is an error, not a bug that is not found."""
    homes = [module for module in store_modules() if old in str(getattr(module, name, ""))]
    assert homes, f"{name} no longer holds {old!r}: this planted bug must be adapted"
    for module in homes:
        swap(stack, module, name, getattr(module, name).replace(old, new))


def store_modules() -> list[ModuleType]:
    names = [each.name for each in pkgutil.iter_modules(outlast.store.__path__) if each.name.startswith("sqlite")]
    return [importlib.import_module(f"outlast.store.{name}") for name in names]


def handle(stack: ExitStack, kind: type, handler: Callable[[Any, Any], None]) -> None:
    stack.enter_context(mock.patch.dict(decide.INPUTS, {kind: handler}))


FENCE = sqlite_procedures._FENCE
SECOND_LOOK = "WHERE NEW.status IS NOT NULL AND NEW.error IS NULL AND EXISTS (SELECT 1 FROM mailbox"


# --- the fence, and what follows when it has closed -----------------------------------------------------------------


@bug("no fence")
def _no_fence(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE", FENCE, "status = 'open'")


@bug("the journal's index is the only fence")
def _index_only(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE", FENCE, "next_event = NEW.next_event AND status = 'open'")


@bug("a fenced run is dropped without a look")
def _no_look(stack: ExitStack) -> None:
    original = node.Node._not_committed

    async def not_committed(self: Any, hosted: Any, commit: Any, decision: Any, outcome: Any) -> None:
        if outcome is Answer.FENCED or isinstance(outcome, CommitUnknown):
            self.leave(hosted)
        else:
            await original(self, hosted, commit, decision, outcome)

    swap(stack, node.Node, "_not_committed", not_committed)


@bug("a turn is committed again after CommitUnknown")
def _turn_twice(stack: ExitStack) -> None:
    original = node.Node._not_committed

    async def not_committed(self: Any, hosted: Any, commit: Any, decision: Any, outcome: Any) -> None:
        row = None
        if isinstance(outcome, CommitUnknown):
            row = await patiently(lambda: self.store.run(hosted.run_id))
        if row is None or row.owner != self.node_id:
            await original(self, hosted, commit, decision, outcome)
        else:
            # As a new turn, or the fence would know it for a copy.
            again = replace(commit, fence=Fence(self.node_id, row.next_event), turn_id=self.next_turn_id())
            self.committer.submit([self.submit(hosted, again, decision)])

    swap(stack, node.Node, "_not_committed", not_committed)


@bug("a created run is forgotten after CommitUnknown")
def _created_forgotten(stack: ExitStack) -> None:
    original = node.Node._created

    def created(self: Any, hosted: Any, commit: Any, decision: Any, answered: Any, outcome: Any) -> None:
        if isinstance(outcome, CommitUnknown):
            self.leave(hosted)
            if not answered.done():
                answered.set_exception(outcome)
        else:
            original(self, hosted, commit, decision, answered, outcome)

    swap(stack, node.Node, "_created", created)


@bug("the answers of a batch are told in the wrong order")
def _answers_swapped(stack: ExitStack) -> None:
    def tell(self: Any, batch: Any, outcome: Any) -> None:
        batch.pop().done(outcome)

    swap(stack, committer.Committer, "_tell", tell)


@bug("a batch that fails for one run fails the others")
def _no_bisection(stack: ExitStack) -> None:
    async def bisect(self: Any, batch: Any, count: int, error: Exception) -> None:
        for _ in range(count):
            self._tell(batch, error)

    swap(stack, committer.Committer, "_bisect", bisect)


# --- persist, then tell ---------------------------------------------------------------------------------------------


@bug("effects leave before the commit")
def _effects_first(stack: ExitStack) -> None:
    original = node.Node.submit

    def submit(self: Any, hosted: Any, commit: Any, decision: Any) -> Any:
        entry = original(self, hosted, commit, decision)
        if decision is not None and decision.dispatch:
            self._effects(hosted, decision)
            decision.dispatch = []
        return entry

    swap(stack, node.Node, "submit", submit)


@bug("a start is acknowledged before the commit")
def _acknowledged_first(stack: ExitStack) -> None:
    original = node.Node.start

    async def start(self: Any, run_id: Any, new: Any, started: Any) -> Answer:
        task = asyncio.ensure_future(original(self, run_id, new, started))
        await asyncio.sleep(0)
        self.looks.add(task)
        task.add_done_callback(self.looks.discard)
        return Answer.COMMITTED

    swap(stack, node.Node, "start", start)


# --- mail -----------------------------------------------------------------------------------------------------------


@bug("a run is given back without a second look into its mailbox")
def _evict_blindly(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE", SECOND_LOOK, SECOND_LOOK.replace("NEW.status IS NOT NULL", "NEW.status <> 'open'"))


@bug("a run is closed without a second look into its mailbox")
def _close_blindly(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE", SECOND_LOOK, SECOND_LOOK.replace("NEW.status IS NOT NULL", "NEW.status = 'open'"))


@bug("mail is consumed whether it was read or not")
def _consume_all(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE", "AND mail_id IN (SELECT value FROM json_each(NEW.consume))", "")


@bug("mail does not wake a run that nobody owns")
def _never_woken(stack: ExitStack) -> None:
    rewrite(stack, "WAKE", "WHEN NEW.owner IS NULL", "WHEN 0")


@bug("a message counts twice if it is sent again after it was consumed")
def _no_dedupe(stack: ExitStack) -> None:
    def cancel_requested(turn: Any, item: CancelRequested) -> None:
        turn.input(WorkflowExecutionCancelRequested(item.message_id, item.reason))

    handle(stack, CancelRequested, cancel_requested)


@bug("parking drops the mail that waits")
def _park_drops_mail(stack: ExitStack) -> None:
    original = parking.release_of

    def release_of(self: Any, hosted: Any, next_event: int, release: Any) -> Any:
        commit = original(self, hosted, next_event, release)
        return replace(commit, consume=tuple(sorted(hosted.mail_ids))) if release.error else commit

    swap(stack, parking, "release_of", release_of)
    swap(stack, loading, "release_of", release_of)


# --- time -----------------------------------------------------------------------------------------------------------


@bug("timers fire early")
def _early(stack: ExitStack) -> None:
    original = alarms.Alarms.set

    def set_early(self: Any, at_us: int, hosted: Any, due: Any) -> None:
        original(self, at_us - 20_000, hosted, due)

    def timer_due(turn: Any, item: TimerDue) -> None:
        if item.timer_id in turn.state.timers:
            turn.input(TimerFired(item.timer_id))

    swap(stack, alarms.Alarms, "set", set_early)
    handle(stack, TimerDue, timer_due)


@bug("a timer that goes off while the clock is set back is forgotten")
def _timer_forgotten(stack: ExitStack) -> None:
    def timer_due(turn: Any, item: TimerDue) -> None:
        timer = turn.state.timers.get(item.timer_id)
        if timer is not None and turn.at_us >= timer.fires_at_us:
            turn.input(TimerFired(item.timer_id))

    def go_off(self: Any) -> None:
        """Trusts the loop's timer, and does not look at the clock."""
        self._timer = None
        while self._heap and self._heap[0][0] <= self._timer_for_us:
            _, _, hosted, due = heapq.heappop(self._heap)
            self._tell(hosted, due)
        self._arm()

    swap(stack, alarms.Alarms, "_go_off", go_off)
    handle(stack, TimerDue, timer_due)


@bug("a run is given back without the time at which it is due")
def _never_due(stack: ExitStack) -> None:
    swap(stack, hosted.Hosted, "wake_at_us", lambda self: None)


# --- hints, liveness, takeover --------------------------------------------------------------------------------------


@bug("a lost hint is never made up for")
def _no_polling(stack: ExitStack) -> None:
    swap(stack, seam.SeamStore, "poll_s", property(lambda self: 1e6))
    if hasattr(membership, "ROUND_S"):
        swap(stack, membership, "ROUND_S", 1e6)


@bug("nobody notices that a node has died")
def _no_burial(stack: ExitStack) -> None:
    async def bury(self: Any, *args: Any) -> None:
        pass

    swap(stack, membership.Membership, "_bury", bury)


@bug("the dead may claim runs")
def _dead_claim(stack: ExitStack) -> None:
    swap(stack, sqlite_claims, "_is_alive", lambda db, node: True)


@bug("runs of the living may be claimed")
def _living_are_robbed(stack: ExitStack) -> None:
    rewrite(stack, "LOST_RUNS", "EXCEPT SELECT node_id FROM nodes WHERE alive", "EXCEPT SELECT max(node_id) FROM nodes")


@bug("the dead are not told by their heartbeat")
def _heartbeat_accepted(stack: ExitStack) -> None:
    rewrite(stack, "HEARTBEAT", "AND alive", "")


@bug("a node that does not know what it has claimed goes on")
def _claims_forgotten(stack: ExitStack) -> None:
    async def look(self: Any) -> None:
        pass

    def task_claim(*args: Any) -> TaskClaim:
        return replace(TaskClaim(*args), held=None)

    swap(stack, strays.Strays, "look", look)
    swap(stack, tasks, "TaskClaim", task_claim)


@bug("claims are counted and never set back")
def _claims_stay(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE", "claims = 0\n", "claims = claims\n")


# --- attempts -------------------------------------------------------------------------------------------------------


@bug("takeover does not journal that attempts are lost")
def _not_lost(stack: ExitStack) -> None:
    swap(stack, loading, "_lost", lambda *args: [])


@bug("a retry policy is not kept to")
def _endless(stack: ExitStack) -> None:
    swap(stack, decide, "_may_retry", lambda pending, retry_at_us: True)


@bug("a completion is fed twice")
def _fed_twice(stack: ExitStack) -> None:
    original = node.Node._attempt_ended

    def attempt_ended(self: Any, hosted: Any, end: Any) -> None:
        original(self, hosted, end)
        original(self, hosted, end)

    def succeeded(turn: Any, item: AttemptSucceeded) -> None:
        turn.input(ActivityCompleted(item.activity_id, item.started_at_us, item.result, item.attempt))

    swap(stack, node.Node, "_attempt_ended", attempt_ended)
    handle(stack, AttemptSucceeded, succeeded)


@bug("the end of an attempt is forgotten when its node stops")
def _stop_forgets(stack: ExitStack) -> None:
    swap(stack, handover, "_lose_attempts", lambda *args: None)


@bug("a task stays when its outcome is delivered")
def _task_stays(stack: ExitStack) -> None:
    rewrite(stack, "REMOVE_TASK", "DELETE FROM tasks", "UPDATE tasks SET node = node")


@bug("a task of a dead node is run again under the same number")
def _task_again(stack: ExitStack) -> None:
    rewrite(stack, "LOST_TASKS", "attempt, body, 1)", "attempt, body, 0)")


# --- signals, queries, updates --------------------------------------------------------------------------------------


@bug("answers leave before the commit")
def _answers_first(stack: ExitStack) -> None:
    original = node.Node.submit

    def submit(self: Any, hosted: Any, commit: Any, decision: Any) -> Any:
        entry = original(self, hosted, commit, decision)
        if decision is not None and decision.replies:
            self._reply(hosted, decision)
        return entry

    swap(stack, node.Node, "submit", submit)


@bug("an update that is asked twice is done twice")
def _update_twice(stack: ExitStack) -> None:
    def update_requested(turn: Any, item: UpdateRequested) -> None:
        failure = turn.program.refuse_update(item.update, item.arguments)
        if failure is not None:
            turn.reply(Refused(item.message_id, failure))
            return
        turn.reply(Accepted(item.message_id))
        turn.input(WorkflowExecutionUpdateAccepted(item.message_id, item.update, item.arguments))

    handle(stack, UpdateRequested, update_requested)


@bug("a refused update is recorded")
def _refused_recorded(stack: ExitStack) -> None:
    original = decide.INPUTS[UpdateRequested]

    def update_requested(turn: Any, item: UpdateRequested) -> None:
        original(turn, item)
        reply = turn.decision.replies[item.message_id]
        if isinstance(reply, Refused):
            turn.input(WorkflowExecutionUpdateAccepted(item.message_id, item.update, item.arguments))
            turn.reply(reply)

    handle(stack, UpdateRequested, update_requested)


@bug("a validator is not asked")
def _not_validated(stack: ExitStack) -> None:
    swap(stack, program.PythonProgram, "refuse_update", lambda self, update, arguments: None)


@bug("nobody elsewhere is answered")
def _no_rows(stack: ExitStack) -> None:
    swap(stack, node, "_replies", lambda hosted, decision: ())


@bug("whoever waits looks for no answers")
def _no_looking(stack: ExitStack) -> None:
    swap(stack, asking.Asking, "_look", lambda self: None)


@bug("open updates are not answered when the run ends")
def _left_open(stack: ExitStack) -> None:
    def close(self: Any, event: Any) -> None:
        self.decision.stop.extend(self.state.activities)
        self.record(event)
        self.decision.outcome = event

    swap(stack, decide._Turn, "close", close)


@bug("questions that come while the run ends are dropped")
def _late_questions_dropped(stack: ExitStack) -> None:
    original = decide.close_with_mail

    def close_with_mail(state: Any, decision: Any, mail: Any) -> None:
        original(state, decision, [each for each in mail if not isinstance(each, QueryRequested | UpdateRequested)])

    swap(stack, node, "close_with_mail", close_with_mail)


@bug("the mail of a start is forgotten")
def _start_forgets_mail(stack: ExitStack) -> None:
    rewrite(stack, "ADVANCE_OR_START_WITH_MESSAGES", "WHERE NEW.mail IS NOT NULL", "WHERE NEW.mail IS NULL")


@bug("a query is answered before the mail that waits")
def _query_first(stack: ExitStack) -> None:
    original = node.Node._turn

    def turn(self: Any, hosted: Any) -> Any:
        if hosted.mail and hosted.inbox:
            mail, hosted.mail = hosted.mail, []
            entry = original(self, hosted)
            hosted.mail = mail + hosted.mail
            self.wake(hosted)
            return entry
        return original(self, hosted)

    swap(stack, node.Node, "_turn", turn)


@bug("a query that is asked here does not look into the mailbox")
def _query_blindly(stack: ExitStack) -> None:
    async def ask_here(self: Any, hosted: Any, mail: Any, message: QueryRequested) -> Any:
        self._service.membership.node.ask(hosted, message)
        return await self.asking.answer(hosted.run_id, message.message_id, by_row=False)

    swap(stack, messages.Messages, "_ask_here", ask_here)


@bug("a run that nobody owns is asked without its mail")
def _recalled_without_mail(stack: ExitStack) -> None:
    rewrite(stack, "MAIL_FOR", "ORDER BY mail_id", "AND owner IS NOT NULL ORDER BY mail_id")


@bug("a query whose run has left is not asked again")
def _query_left(stack: ExitStack) -> None:
    swap(stack, asking.Asking, "left", lambda self, run_id, asked_here: None)


@bug("a signal that is sent twice is handled twice")
def _signal_twice(stack: ExitStack) -> None:
    def signal_received(turn: Any, item: SignalReceived) -> None:
        number = turn.state.next_event
        message_id = item.message_id
        if message_id in turn.state.recent_messages:
            message_id = MessageId(f"{message_id}/{number}")
        turn.input(WorkflowExecutionSignaled(message_id, item.signal, item.arguments))

    handle(stack, SignalReceived, signal_received)


@bug("signals do not reach their handlers")
def _signals_unheard(stack: ExitStack) -> None:
    original = handling.Handling.handle

    def handle_but_signals(self: Any, event: Any) -> None:
        if not isinstance(event, WorkflowExecutionSignaled):
            original(self, event)

    swap(stack, handling.Handling, "handle", handle_but_signals)


@bug("a node that was declared dead answers queries")
def _zombie_answers(stack: ExitStack) -> None:
    original = messages.Messages.query

    async def ask(self: Any, run_id: Any, query: Any, arguments: Any, recall: Any) -> Any:
        hosted = self._service.hosted(run_id)
        if hosted is None:
            return await original(self, run_id, query, arguments, recall)
        mail = await self._service.store.mail_for([run_id])
        message = QueryRequested(MessageId(self._service.entropy.token()), query, arguments)
        try:
            return await self._patiently(run_id, self._ask_here(hosted, mail, message))
        except asking.Left:
            return await ask(self, run_id, query, arguments, recall)

    swap(stack, messages.Messages, "query", ask)


@bug("replies are kept by the id of the message alone")
def _replies_without_run(stack: ExitStack) -> None:
    for module in (asking, node, checks):
        swap(stack, module, "reply_id", lambda run_id, message_id: message_id)


@bug("a refusal is taken for the answer to whoever asks again")
def _stale_refusal(stack: ExitStack) -> None:
    async def refusals(self: Any, asked: Any) -> Any:
        return await self._store.replies(list(asked))

    swap(stack, asking.Asking, "_refusals", refusals)
