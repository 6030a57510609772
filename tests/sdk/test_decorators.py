"""What a decorated function is: itself outside of runs, a recorded call inside, and a function to whoever looks."""

import asyncio
import copy
import functools
import gc
import inspect
import logging
import pickle
import random
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from unittest import mock

import pytest

from outlast.model.errors import DurableCallError, InvalidArgument
from outlast.sdk.activity_context import ActivityInfo, current_attempt
from outlast.sdk.context import RunContext, WorkflowInfo, current_run
from outlast.sdk.decorators import Durable, activity, workflow
from outlast.sdk.messages import Handler
from outlast.sdk.options import CallOptions, Retry
from outlast.sdk.pending import Pending

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class SpokenTo:
    """A run context that writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.logger = logging.LoggerAdapter(logging.getLogger("outlast.test"), {})

    def call(self, target: Durable[..., Any], args: Any, kwargs: Any, options: CallOptions) -> Any:
        self.asked.append(("call", target, args, kwargs, options))
        return "recorded"

    def start(self, target: Durable[..., Any], args: Any, kwargs: Any, options: CallOptions) -> Pending[Any]:
        self.asked.append(("start", target, args, kwargs, options))
        return done("started")

    def sleep(self, delay_us: int, label: str | None) -> Pending[None]:
        self.asked.append(("sleep", delay_us, label))
        return done(None)

    def wait(self, until: Callable[[], object], timeout_us: int | None, label: str | None) -> Pending[bool]:
        self.asked.append(("wait", until, timeout_us, label))
        return done(True)

    def set_handler(self, handler: Handler) -> None:
        self.asked.append(("set_handler", handler))

    def all_handlers_finished(self) -> bool:
        return True

    def now(self) -> datetime:
        return NOON

    def random(self) -> random.Random:
        return random.Random(1)

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=4)

    def info(self) -> WorkflowInfo:
        return WorkflowInfo(workflow="w", workflow_id="id", run_id="r", queue="q", namespace="default", started_at=NOON)

    def unsafe(self) -> AbstractContextManager[None]:
        self.asked.append(("unsafe",))
        return nullcontext()

    def check_usable(self, what: str) -> None: ...


def done(value: Any) -> Pending[Any]:
    async def wait() -> Any:
        return value

    return Pending("test", wait, lambda: value, None)


@pytest.fixture
def run() -> Iterator[SpokenTo]:
    spoken_to = SpokenTo()
    with inside(spoken_to):
        yield spoken_to


@contextmanager
def inside(context: RunContext | None) -> Iterator[None]:
    token = current_run.set(context)
    try:
        yield
    finally:
        current_run.reset(token)


@activity(timeout="30s", retry=Retry(max_attempts=5))
async def charge(amount: int, currency: str = "EUR") -> str:
    """Take the money."""
    return f"{amount} {currency}"


@activity
def ship(item: int, *, fast: bool = False) -> str:
    return f"{item} {fast}"


class Payments:
    def __init__(self, rate: int) -> None:
        self.rate = rate

    @activity
    async def refund(self, amount: int) -> int:
        return self.rate * amount

    @activity(name="fees")
    def fee(self, amount: int) -> int:
        return self.rate + amount

    @staticmethod
    @activity
    def check(amount: int) -> bool:
        return amount > 0


class CheaperPayments(Payments):
    @activity
    async def refund(self, amount: int) -> int:
        return await super().refund(amount) - 1


@workflow
async def order(item: int) -> str:
    return await charge(item) + ship(item)


@workflow(name="approvals", aliases=["Approval"], queue="people")
class Approval:
    def __init__(self) -> None:
        self.made = True

    @workflow.run
    async def main(self, request: str, level: int = 0) -> str:
        return f"{request} {level} {self.made}"


# --- outside of runs --------------------------------------------------------------------------------------------------


async def test_outside_of_a_run_a_decorated_function_is_the_function() -> None:
    payments = Payments(3)
    assert await charge(5, currency="USD") == "5 USD"
    assert await charge.options(timeout=1)(5) == "5 EUR"
    assert ship(1, fast=True) == "1 True"
    assert await payments.refund(2) == 6
    assert await Payments.refund(payments, 2) == 6
    assert payments.fee(2) == 5
    assert Payments.check(1) is payments.check(1) is True
    assert await CheaperPayments(3).refund(2) == 5
    assert await order(7) == "7 EUR7 False"
    assert await Approval().main("a", 2) == "a 2 True"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: workflow.now(),
        lambda: workflow.sleep(1),
        lambda: workflow.wait(lambda: True),
        lambda: workflow.execute(ship, 1),
        lambda: workflow.start(ship, 1),
        lambda: workflow.random(),
        lambda: workflow.uuid4(),
        lambda: workflow.info(),
        lambda: activity.info(),
        lambda: activity.idempotency_key,
    ],
)
def test_what_needs_a_run_or_an_attempt_says_so_outside_of_one(ask: Callable[[], object]) -> None:
    with pytest.raises(DurableCallError, match=r"^(workflow|activity)\.\w+(\(\))? was called where no \w+ runs"):
        ask()


def test_logging_and_unsafe_do_no_harm_outside_of_a_run(caplog: pytest.LogCaptureFixture) -> None:
    with workflow.unsafe():
        workflow.logger.warning("plain %d", 1)
        activity.logger.warning("plain %d", 2)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("outlast.workflow", "plain 1"),
        ("outlast.activity", "plain 2"),
    ]


# --- inside a run -----------------------------------------------------------------------------------------------------


def test_a_call_in_a_run_goes_to_the_run_with_its_options(run: SpokenTo) -> None:
    answer: Any = charge(5, currency="USD")
    assert answer == "recorded"
    with_others = charge.options(timeout=None, queue="slow", label="first")
    with_others(6)
    [first, second] = run.asked
    options = CallOptions(retry=Retry(max_attempts=5).to_policy(), start_to_close_us=30_000_000)
    assert first == ("call", charge, (5,), {"currency": "USD"}, options)
    assert second == (
        "call",
        with_others,
        (6,),
        {},
        CallOptions(queue="slow", label="first", retry=options.retry, start_to_close_us=None),
    )
    assert charge.default_options == options
    assert with_others.origin is charge


def test_a_method_is_called_without_its_instance_among_the_arguments(run: SpokenTo) -> None:
    payments = Payments(3)
    payments.refund(2)  # type: ignore[unused-coroutine]
    Payments.fee(payments, 4)
    Payments.check(1)
    asked = [(verb, target.name, target.bound_to, args) for verb, target, args, _, _ in run.asked]
    assert asked == [
        ("call", "Payments.refund", payments, (2,)),
        ("call", "fees", payments, (4,)),
        ("call", "Payments.check", None, (1,)),
    ]


def test_a_method_without_its_instance_is_refused(run: SpokenTo) -> None:
    unbound: Any = Payments.refund
    with pytest.raises(DurableCallError, match=r"Payments\.refund is a method: call it on an instance of Payments"):
        unbound(2)
    with pytest.raises(DurableCallError, match=r"workflow\.start\(\) was given Payments\.refund, which is a method"):
        workflow.start(unbound, 2)
    assert run.asked == []


def test_execute_and_start_take_arguments_by_position_and_options_by_keyword(run: SpokenTo) -> None:
    assert workflow.execute(ship, 1, queue="q", timeout="5s") == "recorded"
    assert workflow.start(ship.fn, 2).result() == "started"
    assert run.asked == [
        ("call", ship, (1,), {}, CallOptions(queue="q", start_to_close_us=5_000_000)),
        ("start", ship, (2,), {}, CallOptions()),
    ]


@pytest.mark.parametrize("ask", [workflow.execute, workflow.start])
def test_a_misspelt_option_is_refused_with_the_known_ones(run: SpokenTo, ask: Callable[..., Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ask(ship, 1, fast=True)
    assert "unknown option 'fast'; known are timeout, schedule_to_close, retry, queue, label" in str(caught.value)
    assert "`.options(...)(..., fast=...)`" in str(caught.value)
    assert run.asked == []


@pytest.mark.parametrize(
    "call", [lambda: order(1), lambda: workflow.execute(order, 1), lambda: workflow.start(Approval, 1)]
)
def test_a_workflow_in_a_workflow_is_refused_and_nothing_is_asked(run: SpokenTo, call: Callable[[], object]) -> None:
    with pytest.raises(DurableCallError, match="child workflows are not supported yet"):
        call()
    assert run.asked == []


def test_options_of_a_workflow_are_said_to_the_client() -> None:
    with pytest.raises(DurableCallError, match=r"client\.options\(id=\.\.\.\)\.start\(order"):
        order.options(queue="q")


def test_the_namespace_asks_the_run(run: SpokenTo) -> None:
    def condition() -> bool:
        return True

    workflow.sleep("5s", label="nap").result()
    assert workflow.wait(condition, timeout=1.5).result()
    assert workflow.wait(condition, label="approval").result()
    with workflow.unsafe():
        pass
    assert run.asked == [
        ("sleep", 5_000_000, "nap"),
        ("wait", condition, 1_500_000, None),
        ("wait", condition, None, "approval"),
        ("unsafe",),
    ]
    assert workflow.now() == NOON
    assert workflow.info().workflow_id == "id"
    assert workflow.uuid4() == uuid.UUID(int=4)
    assert workflow.random().random() == random.Random(1).random()


def test_a_logger_kept_by_a_module_speaks_for_the_run_in_which_it_is_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Silent(logging.LoggerAdapter[logging.Logger]):
        def isEnabledFor(self, level: int) -> bool:
            return False

    class Telling(logging.LoggerAdapter[logging.Logger]):
        def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
            return f"[run] {msg}", kwargs

    kept = workflow.logger
    replaying, live = SpokenTo(), SpokenTo()
    replaying.logger = Silent(logging.getLogger("x"), {})
    live.logger = Telling(logging.getLogger("x"), {})
    for context in (replaying, live, None):
        with inside(context):
            kept.warning("hello")
    assert [record.getMessage() for record in caplog.records] == ["[run] hello", "hello"]
    assert {record.filename for record in caplog.records} == {"test_decorators.py"}


# --- inside an attempt ------------------------------------------------------------------------------------------------


def test_an_activity_knows_its_attempt_and_its_key_is_the_same_for_all_attempts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def attempt(number: int) -> ActivityInfo:
        return ActivityInfo(
            activity="charge",
            activity_id="3",
            attempt=number,
            workflow="order",
            workflow_id="order-1",
            run_id="0abc",
            namespace="default",
            queue="default",
            scheduled_at=NOON,
            started_at=NOON,
            deadline=None,
        )

    keys = []
    for number in (1, 2):
        token = current_attempt.set(partial(attempt, number))
        keys.append(activity.idempotency_key)
        activity.logger.warning("trying", extra={"mine": 1})
        assert activity.info().attempt == number
        current_attempt.reset(token)
    assert keys == ["0abc/3", "0abc/3"]
    assert [(vars(r)["attempt"], vars(r)["mine"], vars(r)["run_id"]) for r in caplog.records] == [
        (1, 1, "0abc"),
        (2, 1, "0abc"),
    ]


def test_activity_info_in_workflow_code_points_to_workflow_info(run: SpokenTo) -> None:
    with pytest.raises(DurableCallError, match=r"in workflow code.*`workflow\.info\(\)`"):
        activity.info()


# --- to whoever looks -------------------------------------------------------------------------------------------------


def test_a_decorated_function_looks_like_the_function() -> None:
    assert (charge.__name__, charge.__doc__, charge.__module__) == ("charge", "Take the money.", __name__)
    assert inspect.signature(charge) == inspect.signature(charge.fn)
    assert str(inspect.signature(Payments(1).refund)) == "(amount: int) -> int"
    assert [inspect.iscoroutinefunction(each) for each in (charge, ship, order, Payments(1).refund, Payments.fee)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert repr(charge).startswith("<activity charge (")


def test_what_others_wrote_on_the_function_is_kept_and_hides_nothing_of_ours() -> None:
    def marked() -> None: ...

    vars(marked).update(mark="kept", plan="not ours", options="not ours")
    made: Any = activity(name="marked")(marked)
    assert made.mark == "kept"
    assert made.options(queue="q").default_options.queue == "q"


async def test_mock_patch_makes_an_async_mock_of_an_async_activity() -> None:
    with mock.patch(f"{__name__}.charge", return_value="patched ") as patched:
        assert isinstance(patched, mock.AsyncMock)
        assert await order(1) == "patched 1 False"
    with mock.patch.object(Payments, "fee") as patched:
        assert not isinstance(patched, mock.AsyncMock)


def test_it_is_pickled_by_name() -> None:
    payments = Payments(3)
    again: Durable[..., Any]
    for original in (charge, order, Payments.refund):
        again = pickle.loads(pickle.dumps(original))
        assert again is original
        assert copy.deepcopy(original) is original
    again = pickle.loads(pickle.dumps(payments.refund.options(queue="q")))
    assert (again.origin, again.bound_to.rate, again.default_options.queue) == (Payments.refund, 3, "q")
    entry: Any = vars(Approval)["__outlast__"]
    assert pickle.loads(pickle.dumps(entry)) is entry


async def test_to_thread_and_partial_take_it_as_a_function() -> None:
    assert await asyncio.to_thread(ship, 1) == "1 False"
    assert functools.partial(ship, fast=True)(2) == "2 True"


# --- what it carries for others ---------------------------------------------------------------------------------------


def test_the_stored_name_is_the_qualified_name_unless_another_is_given() -> None:
    entry: Any = vars(Approval)["__outlast__"]
    assert [each.name for each in (charge, Payments.refund, Payments.fee, Payments.check, order)] == [
        "charge",
        "Payments.refund",
        "fees",
        "Payments.check",
        "order",
    ]
    assert (entry.name, entry.aliases, entry.cls, entry.kind) == ("approvals", ("Approval",), Approval, "workflow")
    assert entry.default_options.queue == "people"
    line = inspect.getsourcelines(charge.fn)[1]
    assert charge.where == f"{__file__}:{line}"


async def test_each_run_of_a_class_has_an_instance_of_its_own() -> None:
    made: list[object] = []

    @workflow(name="counted")
    class Counted:
        def __init__(self) -> None:
            made.append(self)

        @workflow.run
        async def main(self, item: int) -> int:
            return item

    entry: Durable[..., Any] = vars(Counted)["__outlast__"].entry(lambda instance: None)
    work = [entry(1), entry(item=2)]
    assert made == []  # not before the run's own task does it
    assert [await each for each in work] == [1, 2]
    assert len(set(map(id, made))) == 2


def test_each_run_of_a_sync_class_too() -> None:
    @workflow(name="sync class")
    class Sync:
        @workflow.run
        def main(self, item: int) -> tuple[int, "Sync"]:
            return item, self

    entry: Durable[..., Any] = vars(Sync)["__outlast__"].entry(lambda instance: None)
    (one, first), (two, second) = entry(1), entry(item=2)
    assert (one, two) == (1, 2)
    assert first is not second


def test_names_of_the_function_around_are_seen_even_if_they_are_bound_later() -> None:
    class Early: ...

    @activity(name="local one")
    def local(early: "Early", late: "Late") -> None: ...

    class Service:
        class Inner: ...

        @activity(name="local two")
        def method(self, early: "Early", inner: "Inner") -> None: ...  # type: ignore[name-defined]

    class Late: ...

    assert local.localns["Early"] is Early
    assert local.localns["Late"] is Late
    assert Service.method.localns["Early"] is Early
    assert Service.method.localns["Inner"] is Service.Inner
    assert ship.localns == {}


def test_names_around_are_found_through_decorators_of_the_users_own() -> None:
    class Local: ...

    def traced(fn: Callable[..., Any]) -> Durable[..., Any]:
        @functools.wraps(fn)
        def wrapper(*args: Any) -> Any:
            return fn(*args)

        return activity(name="traced")(wrapper)

    @traced
    def function(local: "Local") -> None: ...

    assert function.localns["Local"] is Local
    assert function.where == f"{__file__}:{inspect.getsourcelines(inspect.unwrap(function))[1]}"


def test_the_plan_is_made_once_and_shared_by_what_is_derived() -> None:
    payments = Payments(1)
    plan = payments.refund.plan
    assert plan.decode_arguments(plan.encode_arguments((2,), {})) == ((2,), {})
    assert plan is Payments.refund.plan
    assert plan is payments.refund.options(queue="q").plan
    assert plan is not CheaperPayments.refund.plan


def test_a_definition_keeps_nothing_alive_but_types() -> None:
    class Large: ...

    def define(late: bool) -> tuple[Durable[..., Any], "weakref.ref[Large]"]:
        large = Large()

        @activity(name="one of two")
        def plain(n: "Large") -> None: ...

        @activity(name="two of two")
        def forward(n: "Late") -> None: ...

        @dataclass
        class Late:
            n: int

        return (forward if late else plain), weakref.ref(large)

    plain, large = define(late=False)
    gc.collect()
    assert large() is None
    assert plain.localns["Large"] is Large

    forward, large = define(late=True)
    assert forward.plan is not None
    gc.collect()
    assert large() is None
    assert forward.localns["Late"].__name__ == "Late"


@pytest.mark.parametrize("until", [True, None, asyncio.sleep])
def test_a_condition_that_is_always_true_is_refused(run: SpokenTo, until: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"workflow\.wait\(\) expects a plain function"):
        workflow.wait(until)
    assert run.asked == []
