"""Handlers of signals, queries and updates: what the decorators make, what a class has, what a caller sends."""

from __future__ import annotations

import functools
import pickle
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest

from outlast.model.errors import DurableCallError, InvalidArgument, NotRegistered, PayloadError
from outlast.model.payloads import Arguments
from outlast.sdk.context import current_run
from outlast.sdk.converter import UntypedResultWarning
from outlast.sdk.decorators import activity, workflow
from outlast.sdk.durable import ENTRY
from outlast.sdk.guard_reach import Reach
from outlast.sdk.handlers import Handlers, encode_message, messages_of
from outlast.sdk.messages import Handler, MessageArguments, MessageKind, Query, Signal, Update
from outlast.sdk.registry import Registry, companions, durable_of

any_workflow: Any = workflow
any_activity: Any = activity

KINDS: tuple[MessageKind, ...] = ("signal", "query", "update")


def handlers_of(cls: type) -> Handlers:
    handlers: Handlers | None = vars(cls)[ENTRY].handlers
    assert handlers is not None
    return handlers


def texts(arguments: Arguments) -> tuple[list[str], dict[str, str]]:
    return (
        [each.to_bytes().decode() for each in arguments.args],
        {key: each.to_bytes().decode() for key, each in arguments.kwargs.items()},
    )


@dataclass
class Reason:
    text: str
    since: date


class Common:
    @workflow.signal
    def pause(self) -> None: ...


@workflow
class Approval(Common):
    def __init__(self) -> None:
        self.made: list[Any] = []

    @workflow.run
    async def run(self, request: str) -> int:
        return 1

    @workflow.signal
    def decide(self, decision: str, reason: Reason | None = None) -> None:
        """What the boss says."""
        self.made.append((decision, reason))

    @workflow.signal(name="decide later", aliases=["later", "postpone"])
    async def decide_later(self, after: int) -> None:
        self.made.append(after)

    @workflow.query
    def status(self, deep: bool = False) -> str:
        return f"{self.made} {deep}"

    @workflow.update
    async def change(self, amount: int, currency: str = "EUR") -> LaterInTheModule:
        self.made.append((amount, currency))
        return LaterInTheModule(amount)

    @change.validator
    def check_change(self, amount: int, currency: str = "EUR") -> None:
        if amount < 0:
            raise ValueError(f"{amount} {len(self.made)}")


@dataclass
class LaterInTheModule:
    amount: int


@workflow
class Anything:
    @workflow.run
    def run(self) -> None: ...

    @workflow.signal
    def known(self, n: int) -> None: ...

    @workflow.signal(dynamic=True)
    def any_signal(self, name: str, args: MessageArguments) -> None: ...

    @workflow.query(dynamic=True)
    def any_query(self, name: str, args: MessageArguments) -> str:
        return f"{name} {args.get(0)}"

    @workflow.update(dynamic=True)
    async def any_update(self, name: str, args: MessageArguments) -> Reason:
        return Reason(name, args.get("since", date))

    @any_update.validator
    def check_any_update(self, name: str, args: MessageArguments) -> None: ...


# --- descriptors ------------------------------------------------------------------------------------------------------


async def test_on_an_instance_a_handler_is_the_plain_method() -> None:
    approval = Approval()
    approval.decide("yes")
    await approval.decide_later(after=3)
    assert approval.status(deep=True) == "[('yes', None), 3] True"
    assert await approval.change(5) == LaterInTheModule(5)
    approval.check_change(1)
    assert approval.decide.__self__ is approval  # type: ignore[attr-defined]


def test_on_the_class_a_handler_is_what_stands_for_the_message() -> None:
    assert (type(Approval.decide), type(Approval.status), type(Approval.change)) == (Signal, Query, Update)
    assert (Approval.decide.kind, Approval.status.kind, Approval.change.kind) == KINDS
    later = Approval.decide_later
    assert (later.name, later.aliases, later.is_async, later.dynamic) == (
        "decide later", ("later", "postpone"), True, False,
    )  # fmt: skip
    assert (Approval.decide.name, Approval.decide.aliases, Approval.decide.is_async) == ("decide", (), False)
    assert Approval.decide.__doc__ == "What the boss says."
    assert re.fullmatch(r"<signal Approval\.decide \(.*test_messages\.py:\d+\)>", repr(Approval.decide))
    assert (Anything.any_signal.dynamic, Approval.change.validator_fn) == (True, vars(Approval)["check_change"])


def test_a_handler_is_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(Approval.decide_later)) is Approval.decide_later


def test_the_plan_resolves_names_that_come_later_in_the_module_and_local_ones() -> None:
    @dataclass
    class Local:
        n: int

    @workflow(name="local")
    class Uses:
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal
        def take(self, local: Local, late: Late) -> None: ...

    @dataclass
    class Late:
        n: int

    sent = Uses.take.plan.encode_arguments((Local(1), Late(2)), {})
    assert Uses.take.plan.decode_arguments(sent) == ((Local(1), Late(2)), {})
    assert Uses.take.plan is Uses.take.plan
    result = Approval.change.plan.encode_result(LaterInTheModule(3))
    assert Approval.change.plan.decode_result(result) == LaterInTheModule(3)


def test_what_a_signal_returns_is_not_looked_at() -> None:
    @workflow(name="returns")
    class Returns:
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal
        def unannotated(self):  # type: ignore[no-untyped-def]
            return object()

        @workflow.signal
        def anything(self) -> Iterator[object]:
            return iter([])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handlers_of(Returns).prepare()


def test_an_answer_without_annotation_is_warned_about_where_the_handler_is() -> None:
    @workflow(name="untyped")
    class Untyped:
        @workflow.run
        def run(self) -> None: ...

        @workflow.query
        def look(self):  # type: ignore[no-untyped-def]
            return 1

    with pytest.warns(UntypedResultWarning, match=r"Untyped\.look has no result annotation") as caught:
        handlers_of(Untyped).prepare()
    assert f"{caught[0].filename}:{caught[0].lineno}" == Untyped.look.where


# --- what cannot be a handler -----------------------------------------------------------------------------------------


def plain(n: int) -> None: ...


@functools.wraps(Approval.decide_later.fn)
def hides_that_it_waits(self: Any, after: int) -> Any: ...


class Wrong:
    def fine(self, n: int) -> None: ...

    def generates(self) -> Iterator[int]:
        yield 1

    def without_self() -> None: ...  # type: ignore[misc]

    def by_keyword(*, self: Any) -> None: ...  # type: ignore[misc]

    def __call__(self) -> None: ...

    async def waits(self) -> int:
        return 1

    @workflow.run
    def main(self) -> None: ...

    @activity
    def paid(self) -> None: ...

    @workflow.signal
    def told(self) -> None: ...

    hides = hides_that_it_waits


REFUSED: list[tuple[object, str]] = [
    (plain, r"is not a method.* class that is decorated with @workflow.*`workflow\.set_signal_handler\(name, fn\)`"),
    (lambda self: None, r"a lambda has no name to be called by\. Write a `def`"),
    (Wrong.generates, r"it is a generator.* return a list"),
    (Wrong.without_self, r"does not take `self`"),
    (Wrong.by_keyword, r"does not take `self`"),
    (Wrong.__call__, r"Python itself calls __call__.* Give the handler a name of its own"),
    (Wrong.__init__, r"expects a method that is written with `def`"),
    (vars(Approval)["__init__"], r"Python itself calls __init__"),
    (Wrong.main, r"it is the run method, which is called once.* Make the handler another method"),
    (Wrong.hides, r"wrapped around an `async def`.* put @workflow\.signal next to the function"),
    (staticmethod(plain), r"staticmethod: .* Remove @staticmethod, and take `self`"),
    (classmethod(plain), r"classmethod: .* Remove @classmethod, and take `self`"),
    (Wrong.paid, r"decorated already\. Let the handler call the activity"),
    (Wrong.told, r"<signal Wrong\.told .* decorated already\. One method takes one"),
    (Wrong, r"cannot take the class Wrong.* Put @workflow on the class"),
    (functools.partial(plain, 1), r"expects a method"),
    ("decide", r"expects a method that is written with `def` or `async def`, not 'decide'"),
]


@pytest.mark.parametrize(("fn", "reason"), REFUSED)
def test_what_cannot_be_a_handler_is_refused_at_decoration(fn: object, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as caught:
        any_workflow.signal(fn)
    assert str(caught.value).startswith("@workflow.signal ")


def test_the_place_of_what_is_refused_is_named() -> None:
    line = plain.__code__.co_firstlineno
    with pytest.raises(InvalidArgument, match=rf"cannot take plain \(.*test_messages\.py:{line}\)"):
        any_workflow.update(plain)


def test_a_function_inside_a_function_is_no_method() -> None:
    def local(self: object) -> None: ...

    with pytest.raises(InvalidArgument, match="is not a method"):
        workflow.signal(local)


def test_a_query_cannot_wait() -> None:
    with pytest.raises(InvalidArgument, match=r"Wrong\.waits \(.*:\d+\): it is an `async def`.* write `def`.* update"):
        workflow.query(Wrong.waits)
    assert workflow.update(Wrong.waits).is_async


def test_a_handler_cannot_be_decorated_with_anything_else_too() -> None:
    for decorate in (any_workflow.run, any_activity, any_workflow, any_workflow.query):
        with pytest.raises(InvalidArgument, match="decorated already"):
            decorate(Wrong.told)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"nmae": "x"}, r"@workflow\.signal: unknown option 'nmae'; known are name, aliases, dynamic"),
    ({"name": ""}, r"@workflow\.signal: name must be a string of 1 to 500 characters"),
    ({"aliases": "x"}, r"aliases must be a list of names.* Put it in brackets"),
    ({"dynamic": 1}, r"dynamic must be True or False, not 1"),
    ({"dynamic": True, "name": "x"}, r"a dynamic handler is for all names.* Leave `name` and `aliases` out"),
    ({"dynamic": True, "aliases": ["x"]}, r"a dynamic handler is for all names"),
]


@pytest.mark.parametrize(("options", "reason"), OPTIONS)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        any_workflow.signal(**options)


def test_a_dynamic_handler_takes_a_name_and_arguments() -> None:
    with pytest.raises(InvalidArgument, match=r"`def fine\(self, name: str, args: outlast\.MessageArguments\)`"):
        workflow.signal(dynamic=True)(Wrong.fine)


# --- validators -------------------------------------------------------------------------------------------------------


class Account:
    @workflow.update
    async def pay(self, amount: int, to: str = "bank") -> int:
        return amount

    @workflow.update
    def close(self) -> None: ...

    @close.validator
    def check_close(self) -> None: ...

    def other_names(self, sum: int, to: str = "bank") -> None: ...

    def fewer(self, amount: int) -> None: ...

    def other_default(self, amount: int, to: str = "friend") -> None: ...

    async def waits(self, amount: int, to: str = "bank") -> None: ...

    def generates(self, amount: int, to: str = "bank") -> Iterator[int]:
        yield 1

    def answers(self, amount: int, to: str = "bank") -> bool:
        return True

    def check(self, amount: int, to: str = "bank") -> None: ...


class Elsewhere:
    def check(self, amount: int, to: str = "bank") -> None: ...


def test_a_validator_has_the_parameters_of_its_update() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Account.pay.validator(Account.other_names)  # type: ignore[arg-type]
    assert re.fullmatch(
        r"@pay\.validator cannot take Account\.other_names \(.*:\d+\): it takes \(sum, to='bank'\), and the update "
        r"\(amount, to='bank'\) \(.*:\d+\)\. It is called with the same arguments, so it takes the same parameters, "
        r"with the same names and defaults\.",
        str(caught.value),
    )
    assert Account.pay.validator_fn is None


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (Account.fewer, r"it takes \(amount\), and the update \(amount, to='bank'\)"),
        (Account.other_default, r"the same names and defaults"),
        (Account.waits, r"a validator is a plain `def`.* What has to wait belongs into the update"),
        (Account.generates, r"a validator is a plain `def`"),
        (Account.answers, r"a validator's result is not looked at\. Raise an exception to refuse"),
        (Account.pay.fn, r"the name of the update itself .* Call it `validate_pay`"),
        (Elsewhere.check, r"in another class than the update .* Define the update again in this class"),
        (staticmethod(plain), r"expects a method that is written with `def`"),
    ],
)
def test_what_cannot_be_a_validator_is_refused(fn: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Account.pay.validator(fn)
    assert Account.pay.validator_fn is None


def test_an_update_has_one_validator() -> None:
    def again(self: Any) -> None: ...

    again.__qualname__ = "Account.again"
    with pytest.raises(InvalidArgument, match=r"has a validator already, Account\.check_close \(.*:\d+\)"):
        Account.close.validator(again)
    assert Account.close.validator_fn is Account.check_close


# --- what a class has -------------------------------------------------------------------------------------------------


def test_a_class_has_its_own_handlers_and_those_of_its_bases() -> None:
    handlers = handlers_of(Approval)
    assert {each.name for each in handlers} == {"pause", "decide", "decide later", "status", "change"}
    assert len(handlers) == 5
    assert handlers.names("signal") == ["decide", "decide later", "later", "pause", "postpone"]
    assert handlers.find("signal", "postpone") is handlers.find("signal", "decide later") is Approval.decide_later
    assert handlers.find("query", "decide") is None
    assert handlers.dynamic("signal") is None
    assert handlers.workflow == "Approval"
    assert handlers_of(Anything).dynamic("query") is Anything.any_query
    assert handlers_of(Anything).find("query", "any_query") is None


def test_what_is_not_a_class_has_no_handlers_that_are_known() -> None:
    @workflow(name="function")
    def function() -> None: ...

    assert function.handlers is None
    assert Wrong.paid.handlers is None


def test_a_bound_handler_calls_the_method_of_its_instance() -> None:
    approval = Approval()
    bound = {each.name: each for each in handlers_of(Approval).bind(approval)}
    assert sorted(bound) == ["change", "decide", "decide later", "pause", "status"]
    decide, later, change = bound["decide"], bound["decide later"], bound["change"]

    name, sent = encode_message(Approval.decide, ("no",), {"reason": Reason("x", date(2026, 1, 2))}, "signal", None)
    args, kwargs = decide.decode(name, sent)
    decide.fn(*args, **kwargs)
    assert approval.made == [("no", Reason("x", date(2026, 1, 2)))]
    assert (decide.kind, decide.is_async, decide.aliases, decide.dynamic) == ("signal", False, (), False)
    assert (decide.plan, decide.where, decide.validator) == (Approval.decide.plan, Approval.decide.where, None)
    assert (later.is_async, later.aliases) == (True, ("later", "postpone"))
    assert change.validator is not None
    with pytest.raises(ValueError, match="-1 1"):
        change.validator(-1)


def test_a_dynamic_handler_is_given_the_name_and_the_arguments() -> None:
    (bound,) = [each for each in handlers_of(Anything).bind(Anything()) if each.kind == "query" and each.dynamic]
    name, sent = encode_message("weather", ("Rome",), {}, "query", handlers_of(Anything))
    args, kwargs = bound.decode(name, sent)
    assert bound.fn(*args, **kwargs) == "weather Rome"
    assert bound.plan.decode_result(bound.plan.encode_result("x")) == "x"
    (update,) = [each for each in handlers_of(Anything).bind(Anything()) if each.kind == "update"]
    assert update.validator is not None
    reason = Reason("x", date(2026, 1, 2))
    assert update.plan.decode_result(update.plan.encode_result(reason)) == reason


def test_an_override_that_is_decorated_takes_the_place_of_the_handler() -> None:
    class Base:
        @workflow.signal(name="base decide", aliases=["old"])
        def decide(self, n: int) -> None: ...

    @workflow(name="over")
    class Over(Base):
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal(name="new decide", aliases=["base decide", "old"])
        def decide(self, n: int) -> None: ...

    assert handlers_of(Over).find("signal", "base decide") is Over.decide
    assert [each.name for each in handlers_of(Over).bind(Over())] == ["new decide"]


def test_a_handler_under_two_attributes_is_one_handler() -> None:
    @workflow(name="twice")
    class Twice:
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal
        def one(self) -> None: ...

        other = one

    assert [each.name for each in handlers_of(Twice)] == ["one"]


def test_the_same_name_may_be_that_of_a_signal_and_of_a_query() -> None:
    @workflow(name="both")
    class Both:
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal(name="state")
        def set_state(self) -> None: ...

        @workflow.query
        def state(self) -> int:
            return 1

    assert (handlers_of(Both).find("signal", "state"), handlers_of(Both).find("query", "state")) == (
        Both.set_state, Both.state,
    )  # fmt: skip


def test_an_abstract_handler_keeps_a_class_from_being_a_workflow() -> None:
    class Base(ABC):
        @workflow.run
        def run(self) -> int:
            return 1

        @workflow.signal
        @abstractmethod
        def decide(self) -> None: ...

    with pytest.raises(InvalidArgument, match="it is abstract"):
        any_workflow(name="abstract")(Base)


def refused_class(**attributes: Any) -> str:
    """What is said about a class with these attributes, that inherits from Ledger."""
    made = type("Wrong", (Ledger,), {"__module__": __name__, **attributes})
    with pytest.raises(InvalidArgument) as caught:
        any_workflow(name="refused")(made)
    return str(caught.value)


class Ledger:
    @workflow.run
    def run(self) -> None: ...

    @workflow.signal(aliases=["write"])
    def book(self, n: int) -> None: ...

    @workflow.signal(dynamic=True)
    def rest(self, name: str, args: MessageArguments) -> None: ...

    @workflow.update
    def close(self) -> None: ...

    @close.validator
    def check_close(self) -> None: ...


class Others:
    def book(self, n: int) -> None: ...

    def check_close(self) -> None: ...

    @workflow.query(name="look")
    def asked(self, n: int) -> int:
        return n

    @workflow.signal(name="write")
    def also(self) -> None: ...

    @workflow.signal(dynamic=True)
    def everything(self, name: str, args: MessageArguments) -> None: ...


def test_an_override_that_is_not_decorated_is_refused_with_both_places() -> None:
    said = refused_class(book=Others.book)
    assert f"book replaces a signal, Ledger.book ({Ledger.book.where}, also called 'write')" in said
    assert re.search(r"Others\.book at .*test_messages\.py:\d+ is not decorated\. Put @workflow\.signal above it", said)
    assert "None is not decorated" in refused_class(book=None)
    assert "Others.book at" in refused_class(book=staticmethod(Others.book))


def test_an_override_of_another_kind_is_refused_with_both_places() -> None:
    said = refused_class(book=Others.asked)
    assert f"book replaces a signal, Ledger.book ({Ledger.book.where}, also called 'write'), by a query" in said
    assert f"Others.asked ({Others.asked.where}): who sends the one would find the other" in said


def test_an_override_keeps_the_names_of_what_it_replaces() -> None:
    said = refused_class(book=Others.also)
    assert f"by Others.also ({Others.also.where}), which is not called 'book'" in said
    assert "Keep it: @workflow.signal(aliases=['book'])" in said


def test_an_override_of_a_validator_alone_is_refused() -> None:
    said = refused_class(check_close=Others.check_close)
    assert f"replaces the validator of Ledger.close ({Ledger.close.where}), which keeps the old one, at " in said
    assert "Define the update again in this class, with @close.validator" in said


def test_two_handlers_of_one_kind_under_one_name_are_refused_with_both_places() -> None:
    said = refused_class(also=Others.also)
    assert "two signals of Wrong are called 'write': " in said
    assert f"Others.also ({Others.also.where})" in said
    assert f"Ledger.book ({Ledger.book.where}, also called 'write')" in said
    assert 'Rename one: @workflow.signal(name="...")' in said


def test_two_dynamic_handlers_of_one_kind_are_refused_with_both_places() -> None:
    said = refused_class(everything=Others.everything)
    assert "Wrong has two dynamic signals, " in said
    assert f"Others.everything ({Others.everything.where})" in said
    assert f"Ledger.rest ({Ledger.rest.where})" in said


def test_the_name_of_a_query_in_the_plural() -> None:
    """The one word whose plural is not its singular and an s."""
    with pytest.raises(NotRegistered, match="It has no queries at all"):
        encode_message("x", (), {}, "query", messages_of(Common))


# --- with worker, guard and registry ----------------------------------------------------------------------------------


def test_a_worker_does_not_begin_with_a_handler_whose_types_cannot_be_recorded() -> None:
    @workflow(name="callbacks")
    class Callbacks:
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal
        def call(self, back: Callable[[], None]) -> None: ...

    with pytest.raises(PayloadError, match=r"parameter 'back' of Callbacks\.call: .* cannot be recorded.* an Enum"):
        Registry(Callbacks)


def test_a_worker_does_not_begin_with_a_handler_whose_types_cannot_be_found() -> None:
    @workflow(name="unknown")
    class Unknown:
        @workflow.run
        def run(self) -> None: ...

        @workflow.update
        def change(self, to: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PayloadError, match=r"parameter 'to' of Unknown\.change: the type hint names 'NoSuchType'"):
        Registry(Unknown)


def test_a_class_with_handlers_that_is_no_workflow_says_so() -> None:
    with pytest.raises(InvalidArgument, match=r"Its handlers \(Common\.pause\) belong to the workflow that inherits"):
        durable_of(Common)


def test_the_guard_looks_into_handlers_and_validators() -> None:
    class Watched:
        @workflow.update
        def change(self) -> float:
            return time.time()

        @change.validator
        def check(self) -> None: ...

    assert {place.code for place in Reach().visit(Watched).places} == {
        Watched.change.fn.__code__, Watched.check.__code__,
    }  # fmt: skip


def test_activities_that_only_a_handler_names_are_hosted_beside_the_workflow() -> None:
    @activity(name="twin")
    def named() -> None: ...

    @activity(name="twin")
    def not_named() -> None: ...

    @workflow(name="names")
    class Names:
        @workflow.run
        def run(self) -> None: ...

        @workflow.signal
        def go(self) -> None:
            named()

    hosted = companions(durable_of(Names))
    assert named in hosted
    assert not_named not in hosted


# --- what a caller sends ----------------------------------------------------------------------------------------------


def test_a_handler_writes_the_arguments_by_its_own_plan() -> None:
    reason = Reason("x", date(2026, 1, 2))
    for handlers in (None, handlers_of(Approval)):
        name, sent = encode_message(Approval.decide, ("yes",), {"reason": reason}, "signal", handlers)
        assert name == "decide"
        assert texts(sent) == (['"yes"'], {"reason": '{"text":"x","since":"2026-01-02"}'})


def test_a_name_that_is_known_is_as_good_as_the_handler() -> None:
    handlers = handlers_of(Approval)
    assert encode_message("change", (1,), {}, "update", handlers) == encode_message(
        Approval.change, (1,), {}, "update", handlers
    )
    name, sent = encode_message("later", (3,), {}, "signal", handlers)
    assert (name, texts(sent)) == ("later", (["3"], {}))
    with pytest.raises(PayloadError, match=r"parameter 'after' of Approval\.decide_later does not fit its type hint"):
        encode_message("later", ("x",), {}, "signal", handlers)


@pytest.mark.parametrize("handlers", [None, handlers_of(Approval)])
def test_an_argument_that_does_not_fit_is_refused_by_its_name(handlers: Handlers | None) -> None:
    with pytest.raises(PayloadError, match=r"parameter 'decision' of Approval\.decide does not fit its type hint"):
        encode_message(Approval.decide, (5,), {}, "signal", handlers)
    with pytest.raises(
        InvalidArgument, match=r"Approval\.decide\(decision, reason=None\) cannot be called so: missing"
    ):
        encode_message(Approval.decide, (), {}, "signal", handlers)
    with pytest.raises(InvalidArgument, match=r"unexpected keyword argument 'decison'.* Nothing was recorded"):
        encode_message(Approval.decide, ("x",), {"decison": 1}, "signal", handlers)


def test_a_message_of_another_kind_says_which_verb_to_use() -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"Approval\.status is a query \(.*:\d+\), and was given to `signal\(\.\.\.\)`\. "
        r"Use `query\(Approval\.status, \.\.\.\)`",
    ):
        encode_message(Approval.status, (), {}, "signal", None)
    with pytest.raises(InvalidArgument, match=r"Approval\.change is an update .* `update\(Approval\.change"):
        encode_message(Approval.change, (1,), {}, "query", handlers_of(Approval))
    with pytest.raises(NotRegistered, match=r"'change' is an update of Approval, and no signal: .*`update\(\.\.\.\)`"):
        encode_message("change", (1,), {}, "signal", handlers_of(Approval))


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    handlers = handlers_of(Approval)
    with pytest.raises(NotRegistered, match=r"Approval has no signal called 'decied'\. Did you mean 'decide'") as near:
        encode_message("decied", ("x",), {}, "signal", handlers)
    assert 'keep the old name: @workflow.signal(aliases=["decied"])' in str(near.value)
    with pytest.raises(NotRegistered, match=r"It has 'decide', 'decide later', 'later', 'pause', 'postpone'\."):
        encode_message("zzz", (), {}, "signal", handlers)
    with pytest.raises(NotRegistered, match=r"Approval has no signal called 'book'"):
        encode_message(Ledger.book, (1,), {}, "signal", handlers)


def test_a_long_list_of_names_is_cut() -> None:
    messages = [workflow.signal(name=f"s{number:02}")(Wrong.fine) for number in range(12)]
    with pytest.raises(NotRegistered, match=r"It has 's00', .*'s09' and 2 more\."):
        encode_message("zzz", (), {}, "signal", Handlers("Many", messages))


def test_an_interface_of_the_same_names_can_be_sent_to() -> None:
    class Interface:
        @workflow.signal
        def pause(self) -> None: ...

    assert encode_message(Interface.pause, (), {}, "signal", handlers_of(Approval)) == ("pause", Arguments())


def test_any_name_can_be_sent_to_a_dynamic_handler() -> None:
    handlers = handlers_of(Anything)
    name, sent = encode_message("whatever", (1, Reason("x", date(2026, 1, 2))), {"k": None}, "signal", handlers)
    assert name == "whatever"
    assert texts(sent) == (["1", '{"text":"x","since":"2026-01-02"}'], {"k": "null"})
    assert encode_message(Ledger.book, (1,), {}, "signal", handlers)[0] == "book"
    with pytest.raises(PayloadError, match=r"parameter 'n' of Anything\.known"):
        encode_message("known", ("x",), {}, "signal", handlers)
    with pytest.raises(PayloadError, match=r"argument 0 of signal 'x': .*Anything\.any_signal is for any name"):
        encode_message("x", (object(),), {}, "signal", handlers)


def test_a_dynamic_handler_cannot_be_sent_to_without_a_name() -> None:
    with pytest.raises(InvalidArgument, match=r'any_signal .* Say which: `signal\("name", \.\.\.\)`'):
        encode_message(Anything.any_signal, ("x",), {}, "signal", handlers_of(Anything))


def test_a_name_of_an_unknown_workflow_writes_each_value_as_its_own_type() -> None:
    name, sent = encode_message(
        "x", (1, "a", None, (1, 2), Reason("r", date(2026, 1, 2))), {"d": {"k": [True]}}, "update", None
    )
    assert name == "x"
    assert texts(sent) == (["1", '"a"', "null", "[1,2]", '{"text":"r","since":"2026-01-02"}'], {"d": '{"k":[true]}'})
    assert encode_message("x", (), {}, "query", None) == ("x", Arguments())


@pytest.mark.parametrize("value", [object(), float("nan"), {1: 2}, [Reason("x", date(2026, 1, 2))], lambda: 1])
def test_a_value_that_cannot_be_written_without_a_type_says_how_to_give_the_type(value: object) -> None:
    with pytest.raises(PayloadError, match=r"argument 0 of signal 'x'.* `client\.handle\(id, Approval\)`"):
        encode_message("x", (value,), {}, "signal", None)
    with pytest.raises(PayloadError, match=r"argument 'key' of signal 'x'"):
        encode_message("x", (), {"key": value}, "signal", None)


def test_what_is_no_message_is_refused_with_what_is_expected() -> None:
    with pytest.raises(InvalidArgument, match=r"not the method of an instance: give `Approval\.decide`"):
        encode_message(Approval().decide, ("x",), {}, "signal", None)
    with pytest.raises(InvalidArgument, match=r"Approval\.run \(.*\) is not decorated: put @workflow\.update above it"):
        encode_message(Approval.run, ("x",), {}, "update", None)
    with pytest.raises(InvalidArgument, match=r"`query\(\.\.\.\)` expects a query .* or its name, not 5"):
        encode_message(5, (), {}, "query", None)
    for name in ("", " ", "x" * 501):
        with pytest.raises(InvalidArgument, match=r"`signal\(\.\.\.\)`: name must be a string of 1 to 500 characters"):
            encode_message(name, (), {}, "signal", None)


# --- the arguments of a dynamic handler -------------------------------------------------------------------------------


def came(*args: Any, **kwargs: Any) -> MessageArguments:
    return MessageArguments("weather", encode_message("weather", args, kwargs, "signal", None)[1])


def test_the_arguments_of_a_dynamic_handler_are_read_as_the_types_that_it_names() -> None:
    args = came(3, "2026-01-02", reason=Reason("x", date(2026, 1, 2)))
    assert len(args) == 3
    assert (args.get(0, int), args.get(1, date), args.get(1)) == (3, date(2026, 1, 2), "2026-01-02")
    assert args.get("reason", Reason) == Reason("x", date(2026, 1, 2))
    assert args.get("reason") == {"text": "x", "since": "2026-01-02"}
    assert args.get(0, int | None) == 3
    assert came(1, "x").decode(int, str) == (1, "x")
    assert came().decode() == ()
    assert args.raw() == ((b"3", b'"2026-01-02"'), {"reason": b'{"text":"x","since":"2026-01-02"}'})
    assert repr(came(1, k="x")) == '<MessageArguments weather(1, k="x")>'


def test_arguments_that_are_not_there_or_do_not_fit_are_refused() -> None:
    args = came(3, reason="x")
    for which in (1, -1, "raison"):
        with pytest.raises(PayloadError, match=r"there is no argument .* of 'weather': 1 came .* 'reason' by name"):
            args.get(which)
    with pytest.raises(PayloadError, match=r"argument 0 of 'weather'"):
        args.get(0, str)
    with pytest.raises(PayloadError, match=r"1 arguments by position and by name 'reason', and 1 types"):
        args.decode(int)
    with pytest.raises(PayloadError, match=r"came with 1 arguments by position, and 2 types .* one by one with get"):
        came(1).decode(int, int)


# --- function workflows -----------------------------------------------------------------------------------------------


class Run:
    """A run context that keeps the handlers that are set."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []

    def set_handler(self, handler: Handler) -> None:
        self.handlers.append(handler)

    def all_handlers_finished(self) -> bool:
        return not self.handlers


@pytest.fixture
def run() -> Iterator[Run]:
    context = Run()
    token = current_run.set(context)  # type: ignore[arg-type]
    yield context
    current_run.reset(token)


def test_a_function_workflow_sets_its_handlers_when_it_runs(run: Run) -> None:
    @dataclass
    class Local:
        n: int

    said: list[Local] = []

    def decide(local: Local) -> None:
        said.append(local)

    async def change(amount: int, by: str = "x") -> int:
        return amount

    def check(amount: int, by: str = "x") -> None: ...

    workflow.set_signal_handler("decide", decide)
    workflow.set_update_handler("change", change, validator=check)
    first, second = run.handlers
    args, kwargs = first.decode("decide", encode_message("decide", (Local(1),), {}, "signal", None)[1])
    first.fn(*args, **kwargs)
    assert said == [Local(1)]
    assert (first.kind, first.name, first.aliases, first.is_async, first.dynamic, first.validator) == (
        "signal", "decide", (), False, False, None,
    )  # fmt: skip
    assert first.where == f"{__file__}:{decide.__code__.co_firstlineno}"
    assert (second.kind, second.name, second.fn, second.is_async, second.validator) == (
        "update", "change", change, True, check,
    )  # fmt: skip


def test_a_lambda_may_answer_a_query_that_has_no_arguments(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workflow.set_query_handler("status", lambda: {"n": 1})
    (handler,) = run.handlers
    assert handler.plan.encode_result(handler.fn()).to_bytes() == b'{"n":1}'
    with pytest.raises(InvalidArgument, match=r"a lambda has no types for its arguments\. Write a `def`"):
        workflow.set_query_handler("status", lambda deep: 1)


def test_a_method_may_be_set_as_a_handler(run: Run) -> None:
    account = Account()
    workflow.set_update_handler("waits", account.waits, account.check)
    (handler,) = run.handlers
    assert handler.decode("waits", encode_message("x", (1,), {"to": "me"}, "update", None)[1]) == ((1,), {"to": "me"})
    assert (handler.fn, handler.is_async, handler.validator) == (account.waits, True, account.check)


def test_none_stands_for_all_names_that_no_other_handler_has(run: Run) -> None:
    def anything(name: str, args: MessageArguments) -> int:
        return args.get(0, int)

    workflow.set_query_handler(None, anything)
    (handler,) = run.handlers
    args, kwargs = handler.decode("x", encode_message("x", (7,), {}, "query", None)[1])
    assert (handler.fn(*args, **kwargs), handler.dynamic, handler.name) == (7, True, "anything")
    with pytest.raises(InvalidArgument, match=r"`def plain\(name: str, args: outlast\.MessageArguments\)`"):
        workflow.set_signal_handler(None, plain)


def test_what_cannot_be_set_as_a_handler_is_refused(run: Run) -> None:
    async def waits() -> int:
        return 1

    def generates() -> Iterator[int]:
        yield 1

    def takes_code(back: Callable[[], None]) -> None: ...

    def check(n: str = "") -> None: ...

    any_set: Any = workflow
    refused: list[tuple[Callable[[], None], str]] = [
        (lambda: any_set.set_signal_handler("x", 5), r"workflow\.set_signal_handler\(\) expects a function .* not 5"),
        (lambda: any_set.set_signal_handler(5, plain), r"set_signal_handler\(\): name must be a string"),
        (lambda: any_set.set_signal_handler("", plain), r"name must be a string of 1 to 500"),
        (lambda: any_set.set_query_handler("x", waits), r"waits \(.*:\d+\): it is an `async def`.* write `def`"),
        (lambda: any_set.set_signal_handler("x", generates), r"it is a generator"),
        (lambda: any_set.set_signal_handler("x", hides_that_it_waits), r"or pass the function below it"),
        (lambda: any_set.set_signal_handler("x", Approval.decide), r"decorated already\. Write a `def` that calls it"),
        (lambda: any_set.set_update_handler("x", plain, check), r"check .* as the validator: it takes \(n=''\)"),
        (lambda: any_set.set_update_handler("x", plain, 5), r"the validator expects a function"),
    ]
    for call, reason in refused:
        with pytest.raises(InvalidArgument, match=reason):
            call()
    with pytest.raises(PayloadError, match=r"parameter 'back' of x"):
        workflow.set_signal_handler("x", takes_code)
    assert run.handlers == []


def test_whether_handlers_are_at_work_is_known_to_the_run(run: Run) -> None:
    assert workflow.all_handlers_finished()
    workflow.set_query_handler("x", lambda: 1)
    assert not workflow.all_handlers_finished()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: workflow.set_signal_handler("x", plain),
        lambda: workflow.set_query_handler("x", plain),
        lambda: workflow.set_update_handler("x", plain),
        lambda: workflow.all_handlers_finished(),
    ],
)
def test_where_no_workflow_runs_nothing_can_be_set(ask: Callable[[], object]) -> None:
    with pytest.raises(DurableCallError, match=r"^workflow\.\w+\(\) was called where no workflow runs"):
        ask()
