"""Exceptions survive the way through a history: as what they were where that is possible, and never as a surprise."""

from __future__ import annotations

import asyncio
import sys
import traceback
import types
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.model.errors import (
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    AlreadyStarted,
    DeterminismViolation,
    InvalidArgument,
    PayloadError,
    RemoteError,
    WorkflowFailed,
)
from outlast.model.failures import Failure, FailureKind
from outlast.model.payloads import Payload
from outlast.model.policies import RetryPolicy
from outlast.sdk.failures import (
    MAX_DETAILS,
    MAX_FAILURES,
    MAX_MESSAGE,
    ApplicationError,
    exception_from,
    failure_from,
    type_path,
    workflow_failed,
)
from outlast.sdk.tracebacks import MAX_TRACEBACK


class CardDeclined(Exception):
    """Its constructor takes something else than its args."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"declined: {reason}")
        self.code = code
        self.reason = reason


class Insufficient(CardDeclined):
    class Nested(Exception):
        pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def recorded(failure: Failure) -> Failure:
    return msgspec.json.decode(msgspec.json.encode(failure), type=Failure)


def there_and_back(error: BaseException) -> Exception:
    return exception_from(recorded(failure_from(raised(error))))


def own_attributes(error: BaseException) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if not name.startswith("__")}


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad", 3),
        KeyError("k"),
        Exception(),
        CardDeclined(3, "no money"),
        Insufficient(4, "none"),
        Insufficient.Nested("x"),
        TimeoutError("slow"),
        ZeroDivisionError("division by zero"),
        ApplicationError("gone", {"id": 3}, [1], type="Gone", retry_after="5s", non_retryable=True),
        AlreadyStarted("in use", "run-1"),
    ],
    ids=repr,
)
def test_an_exception_comes_back_with_its_class_arguments_and_attributes(error: Exception) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert (back.args, str(back)) == (error.args, str(error))
    assert own_attributes(back) == own_attributes(error)


def test_what_c_keeps_of_an_os_error_comes_back() -> None:
    back = there_and_back(FileNotFoundError(2, "No such file", "a.txt"))
    assert isinstance(back, FileNotFoundError)
    assert (back.errno, back.strerror, back.filename) == (2, "No such file", "a.txt")
    assert str(back) == "[Errno 2] No such file: 'a.txt'"


def test_causes_come_back_as_causes() -> None:
    def fail() -> None:
        try:
            try:
                {}["k"]
            except KeyError:
                raise ValueError("inner")  # noqa: B904
        except ValueError as error:
            raise CardDeclined(1, "x") from error

    with pytest.raises(CardDeclined) as caught:
        fail()
    back = exception_from(recorded(failure_from(caught.value)))
    assert isinstance(back.__cause__, ValueError)
    assert isinstance(back.__cause__.__cause__, KeyError)
    assert back.__cause__.__cause__.__cause__ is None


def test_a_context_that_the_user_suppressed_is_left_out() -> None:
    error = raised(ValueError("x"))
    error.__context__ = KeyError("hidden")
    error.__suppress_context__ = True
    assert failure_from(error).cause is None


def test_exception_groups_come_back_with_their_members() -> None:
    group = ExceptionGroup("several", [CardDeclined(1, "a"), ExceptionGroup("inner", [ValueError("b")])])
    back = there_and_back(group)
    assert isinstance(back, ExceptionGroup)
    assert back.message == "several"
    declined, inner = back.exceptions
    assert isinstance(declined, CardDeclined)
    assert declined.code == 1
    assert isinstance(inner, ExceptionGroup)
    assert [repr(each) for each in inner.exceptions] == ["ValueError('b')"]
    assert there_and_back(back).message == "several"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


def test_an_exception_that_refuses_assignment_is_rebuilt_too() -> None:
    error = Frozen(3)
    failure = failure_from(error)
    back = exception_from(msgspec.structs.replace(failure, cause=failure_from(ValueError("why"))))
    assert isinstance(back, Frozen)
    assert (back.code, repr(back.__cause__)) == (3, "ValueError('why')")


def test_constructors_of_the_users_are_not_called_again() -> None:
    calls: list[int] = []

    class Loud(Exception):
        def __new__(cls, *args: Any) -> Loud:
            calls.append(1)
            return super().__new__(cls, *args)

        def __init__(self, *args: Any) -> None:
            calls.append(2)

    module = types.ModuleType("loud_module")
    Loud.__module__, Loud.__qualname__ = "loud_module", "Loud"
    module.Loud = Loud  # type: ignore[attr-defined]
    sys.modules["loud_module"] = module
    try:
        failure = recorded(failure_from(Loud("x")))
        calls.clear()
        back = exception_from(failure)
    finally:
        del sys.modules["loud_module"]
    assert (type(back), back.args, calls) == (Loud, ("x",), [])


# --- what people see --------------------------------------------------------------------------------------------------


def test_the_traceback_of_where_it_was_raised_is_shown_once_however_often_it_travels() -> None:
    def charge() -> None:
        raise CardDeclined(3, "x")

    with pytest.raises(CardDeclined) as caught:
        charge()
    once = there_and_back(caught.value)
    shown = "".join(traceback.format_exception(once))
    assert "in charge" in shown
    assert "Traceback where it was raised" in shown

    twice = there_and_back(once)
    notes = "".join(twice.__notes__)
    assert notes.count("in charge") == 1
    assert notes.count("Traceback where it was raised") == 1
    assert "where it was waited for" in notes


def test_notes_of_the_users_travel_along() -> None:
    error = ValueError("x")
    error.add_note("while paying order 3")
    for _ in range(3):
        error = there_and_back(error)  # type: ignore[assignment]
    assert [note for note in error.__notes__ if "paying" in note] == ["while paying order 3"]


def test_frames_of_this_package_are_not_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        ApplicationError("x", retry_after="soon")
    text = failure_from(caught.value).traceback
    assert "test_failures.py" in text
    assert "durations.py" not in text


def test_what_could_not_be_recorded_is_named() -> None:
    class Response:
        pass

    error = CardDeclined(3, "x")
    error.response = Response()  # type: ignore[attr-defined]
    back = there_and_back(error)
    assert own_attributes(back) == {"code": 3, "reason": "x"}
    assert any("not recorded" in note and "response" in note for note in back.__notes__)


def test_arguments_that_are_not_json_leave_the_message() -> None:
    back = there_and_back(ValueError(object, {1: 2}))
    assert isinstance(back, ValueError)
    assert str(back) == str(ValueError(object, {1: 2}))
    decode = there_and_back(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))
    assert type(decode) is UnicodeDecodeError
    assert any("can't decode byte 0xff" in note for note in decode.__notes__)


# --- limits and hostile exceptions ------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class NoDict(Exception):
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


def deep_recursion(n: int) -> None:
    if n == 0:
        raise ValueError("deep")
    deep_recursion(n - 1)


def looping() -> Exception:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    return a


def chained(n: int) -> BaseException:
    error: BaseException = ValueError("first")
    for index in range(n):
        following = ValueError(str(index))
        following.__cause__ = error
        error = following
    return error


def tree(depth: int) -> ExceptionGroup[Exception]:
    if depth == 0:
        return ExceptionGroup("leaf", [ValueError("x" * 10_000) for _ in range(10)])
    return ExceptionGroup("node", [tree(depth - 1) for _ in range(4)])


def with_attributes(count: int) -> Exception:
    error = ValueError("x")
    for index in range(count):
        setattr(error, f"attribute_{index}", "y" * 1_000)
    return error


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unprintable("x"),
        lambda: NoDict("x"),
        lambda: ValueError("\ud800", "\x00"),
        lambda: ValueError("x" * 10_000_000),
        looping,
        lambda: chained(5_000),
        lambda: tree(4),
        lambda: with_attributes(2_000),
        lambda: type("\u00e4 b:c.<d>", (Exception,), {})("x"),
        lambda: BaseExceptionGroup("g", [KeyboardInterrupt()]),
        lambda: raised_by(lambda: deep_recursion(900)),
    ],
    ids=["str", "dict", "surrogate", "long", "loop", "chain", "tree", "attributes", "name", "base", "recursion"],
)
def test_any_exception_makes_a_failure_of_bounded_size_that_can_be_written_and_read(make: Any) -> None:
    failure = failure_from(raised(make()))
    text = msgspec.json.encode(failure)
    assert len(text) < 2 * 1024 * 1024
    assert recorded(failure) == failure
    assert isinstance(exception_from(recorded(failure)), Exception)
    assert len(failure.message) < MAX_MESSAGE + 100
    assert len(failure.traceback) < MAX_TRACEBACK + 100
    assert failure.args is None or len(bytes(failure.args.data)) <= MAX_DETAILS
    count, cause = 1, failure.cause
    while cause is not None:
        count, cause = count + 1, cause.cause
    assert count <= MAX_FAILURES


def raised_by(call: Any) -> BaseException:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it raises")


@given(st.lists(st.text(st.characters()) | st.integers() | st.floats() | st.binary() | st.none(), max_size=4))
def test_whatever_the_arguments_are_class_and_message_come_back(args: list[Any]) -> None:
    error = ValueError(*args)
    back = there_and_back(error)
    assert type(back) is ValueError
    if not any(isinstance(each, str) and not each.isprintable() for each in args):
        assert str(back) == str(error)


# --- what must not happen ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError("stop"),
        DeterminismViolation("x"),
        BaseExceptionGroup("g", [KeyboardInterrupt()]),
    ],
    ids=repr,
)
def test_what_would_stop_or_cancel_something_is_not_rebuilt(error: BaseException) -> None:
    back = there_and_back(error)
    assert type(back) is ActivityError
    assert type(error).__name__ in str(back)
    assert back.failure is not None


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "builtins:print",
        "subprocess:Popen",
        "not_loaded:Error",
        "outlast:nothing",
        "object",
        "int",
        "",
        ":",
        "a:b:c",
        "builtins:ValueError.__init__",
        "..",
        "json:JSONDecodeError.__class__",
        "collections.abc:Mapping",
    ],
)
def test_a_history_makes_nothing_run_but_classes_of_exceptions_that_are_loaded(path: str) -> None:
    back = exception_from(Failure(path, "message", args=Payload.from_json(b'["rm -rf"]')))
    assert type(back) is ActivityError
    assert "message" in str(back)


def test_a_history_drives_no_imports() -> None:
    name = "this_module_must_stay_unloaded"
    back = exception_from(Failure(f"{name}:Error", "gone"))
    assert name not in sys.modules
    assert str(back) == "Error: gone"
    assert any(f"import {name}" in note for note in back.__notes__)

    lazy = types.ModuleType("lazy_module")
    lazy.__getattr__ = lambda name: pytest.fail("asked for an attribute")  # type: ignore[method-assign]
    sys.modules["lazy_module"] = lazy
    try:
        assert type(exception_from(Failure("lazy_module:Error", "x"))) is ActivityError
    finally:
        del sys.modules["lazy_module"]


@pytest.mark.parametrize("attributes", [b"3", b'{"__exceptions__":3}', b"nonsense", b'{"a":'])
@pytest.mark.parametrize("kind", ["ValueError", "ExceptionGroup"])
def test_a_damaged_record_still_gives_an_exception(attributes: bytes, kind: str) -> None:
    back = exception_from(
        Failure(kind, "message", args=Payload.from_json(b"[1]"), attributes=Payload(msgspec.Raw(attributes)))
    )
    assert "message" in str(back) or isinstance(back, ValueError)


# --- outlast's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cls"), [(FailureKind.TIMEOUT, ActivityTimeout), (FailureKind.LOST, ActivityLost)], ids=str
)
def test_timeouts_and_losses_have_their_own_classes_and_stay_what_they_are(
    kind: FailureKind, cls: type[ActivityError]
) -> None:
    failure = Failure(cls.__name__, "not done within 5s", kind)
    back = exception_from(failure)
    assert type(back) is cls
    assert isinstance(back, ActivityError)
    assert (str(back), back.failure) == ("not done within 5s", failure)
    assert failure_from(raised(back)) == failure


def test_an_error_of_an_unknown_class_that_a_workflow_lets_pass_keeps_its_class_for_whoever_knows_it() -> None:
    failure = Failure(
        "not_loaded:Error", "gone", cause=Failure("ValueError", "why", args=Payload.from_json(b'["why"]'))
    )
    back = exception_from(failure)
    assert repr(back.__cause__) == "ValueError('why')"
    assert failure_from(raised(back)) == failure


def test_a_failed_workflow_shows_the_chain_of_causes() -> None:
    cause = failure_from(raised(ValueError("why")))
    failure = msgspec.structs.replace(failure_from(raised(CardDeclined(3, "x"))), cause=cause)
    error = workflow_failed(recorded(failure), "order-1")
    assert type(error) is WorkflowFailed
    assert str(error) == "workflow 'order-1' failed: CardDeclined: declined: x"
    assert error.failure == failure
    assert isinstance(error.__cause__, CardDeclined)
    assert isinstance(error.__cause__.__cause__, ValueError)
    shown = "".join(traceback.format_exception(error))
    assert shown.index("ValueError: why") < shown.index("CardDeclined: declined: x") < shown.index("order-1")


def test_a_workflow_that_failed_with_an_unknown_class_is_not_called_an_activity() -> None:
    error = workflow_failed(Failure("not_loaded:Error", "gone"), "order-1")
    assert type(error.__cause__) is RemoteError
    assert str(error.__cause__) == "Error: gone"


def test_a_failed_workflow_inside_an_activity_keeps_its_failure() -> None:
    inner = failure_from(raised(CardDeclined(3, "x")))
    back = there_and_back(workflow_failed(inner, "child"))
    assert isinstance(back, WorkflowFailed)
    assert back.failure is not None
    assert back.failure.type == type_path(CardDeclined)
    assert isinstance(back.__cause__, CardDeclined)


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "stops"),
    [
        ((), False),
        (("ValueError",), False),
        ((type_path(CardDeclined),), True),
        ((type_path(Insufficient),), True),
        (("CardDeclined",), True),
        (("__main__:CardDeclined",), True),
        (("Exception",), True),
        (("elsewhere:CardDeclined",), False),
        (("ined",), False),
    ],
)
def test_a_listed_class_or_any_base_of_it_stops_the_retries(listed: tuple[str, ...], stops: bool) -> None:
    failure = failure_from(Insufficient(1, "x"), RetryPolicy(non_retryable=listed))
    assert failure.non_retryable is stops


def test_a_class_of_the_main_program_is_recognised_under_its_real_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CardDeclined, "__module__", "__main__")
    failure = failure_from(CardDeclined(1, "x"), RetryPolicy(non_retryable=("shop:CardDeclined",)))
    assert failure.non_retryable


def test_an_application_error_says_how_it_wants_to_be_retried() -> None:
    failure = failure_from(ApplicationError("x", non_retryable=True, retry_after="1m", type="Full"))
    assert (failure.non_retryable, failure.retry_after_us) == (True, 60_000_000)
    assert failure_from(ApplicationError("x")).retry_after_us is None
    assert failure_from(ApplicationError("x", type="Full"), RetryPolicy(non_retryable=("Full",))).non_retryable

    class Closed(ApplicationError):
        non_retryable = True
        retry_after = "2s"

        def __init__(self) -> None:
            pass  # does not call the constructor of its base

    closed = failure_from(Closed())
    assert (closed.non_retryable, closed.retry_after_us) == (True, 2_000_000)
    Closed.retry_after = "soon"
    assert failure_from(Closed()).retry_after_us is None


def test_attributes_of_other_exceptions_are_no_wishes() -> None:
    error = ValueError("x")
    error.retry_after = 5  # type: ignore[attr-defined]
    error.non_retryable = True  # type: ignore[attr-defined]
    failure = failure_from(error)
    assert (failure.non_retryable, failure.retry_after_us) == (False, None)


def test_a_value_that_cannot_be_recorded_is_not_computed_again_and_again() -> None:
    assert failure_from(PayloadError("result of f: ...")).non_retryable


def test_an_application_error_reads_as_its_message() -> None:
    error = ApplicationError("out of stock", {"sku": 3}, 4)
    assert (str(error), error.message, error.details) == ("out of stock", "out of stock", ({"sku": 3}, 4))
    assert there_and_back(error).details == ({"sku": 3}, 4)  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match="not a duration"):
        ApplicationError("x", retry_after="soon")
