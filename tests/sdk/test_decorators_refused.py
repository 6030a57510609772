"""What cannot be an activity or a workflow is refused where it is decorated, with what to do instead."""

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

import pytest

from outlast.model.errors import InvalidArgument
from outlast.sdk.decorators import activity, workflow

T = TypeVar("T")

any_activity: Callable[..., Any] = activity
any_workflow: Callable[..., Any] = workflow


def plain(n: int) -> int:
    return n


async def coroutine(n: int) -> int:
    return n


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


def generic(items: list[T]) -> T:
    return items[0]


@functools.wraps(coroutine)
def wrapper_that_is_not_async(n: int) -> Any:
    return coroutine(n)


class Page(Generic[T]): ...


def unparametrised(page: Page) -> None: ...  # type: ignore[type-arg]


class Service:
    def method(self) -> None: ...


REFUSED: list[tuple[Any, str]] = [
    (lambda: 1, "a lambda has no name that a history could hold.* Write a `def`"),
    (functools.partial(plain, 1), "a partial has no name.* Write a `def`"),
    (generator, "it is a generator.* return a list"),
    (async_generator, "it is a generator.* return a list"),
    (generic, r"the type of parameter 'items' depends on a type variable \(~T\)"),
    (wrapper_that_is_not_async, "wrapped around an `async def`.* Make the wrapper an `async def`"),
    (staticmethod(plain), "staticmethod: put @staticmethod above it"),
    (classmethod(plain), "classmethod: a history cannot say which class"),
    (Service().method, "bound method.* Decorate it in the class"),
    (activity(plain), "decorated already"),
    (workflow(coroutine), "decorated already"),
    (len, "expects a function that is written with `def`"),
    ("charge", "expects a function that is written with `def` or `async def`, not 'charge'"),
    (None, "expects a function .* not None"),
]


@pytest.mark.parametrize("decorate", [any_activity, any_workflow])
@pytest.mark.parametrize(("target", "reason"), REFUSED)
def test_what_replay_could_not_find_again_is_refused_at_decoration(
    decorate: Callable[..., Any], target: Any, reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        decorate(target)


def test_a_function_inside_a_function_needs_a_name() -> None:
    def local() -> None: ...

    class Local:
        @workflow.run
        def main(self) -> None: ...

    for decorate, target in ((any_activity, local), (any_workflow, local), (any_workflow, Local)):
        with pytest.raises(InvalidArgument, match=r'defined inside a function.*\(name="\.\.\."\)'):
            decorate(target)
        assert decorate(name="chosen")(target) is not None


def test_a_lambda_is_refused_even_with_a_name() -> None:
    with pytest.raises(InvalidArgument, match="no types for its arguments"):
        activity(name="named")(lambda: None)


def test_a_generic_class_without_brackets_is_left_to_the_payload_plan() -> None:
    assert activity(unparametrised).name == "unparametrised"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is Python 3.12's")
def test_type_parameters_of_a_function_are_refused() -> None:
    names: dict[str, Any] = {}
    exec("def generic[T](value: T) -> T: return value", names)
    with pytest.raises(InvalidArgument, match=r"the type of parameter 'value' depends on a type variable \(T\)"):
        activity(names["generic"])
    exec("from __future__ import annotations\ndef generic[T](value: T) -> T: return value", names)
    with pytest.raises(InvalidArgument, match=r"its signature depends on a type variable \(T\)"):
        activity(names["generic"])


def test_an_activity_cannot_be_a_class() -> None:
    with pytest.raises(InvalidArgument, match=r"cannot take the class Service.* Decorate its methods"):
        any_activity(Service)


def test_a_workflow_cannot_be_a_method() -> None:
    # Python 3.11 puts a RuntimeError around what `__set_name__` raises.
    with pytest.raises((InvalidArgument, RuntimeError)) as caught:

        class Wrong:
            @workflow(name="wrong")
            def method(self) -> None: ...

    error = caught.value.__cause__ if isinstance(caught.value, RuntimeError) else caught.value
    assert isinstance(error, InvalidArgument)
    assert "Put @workflow on the class, and @workflow.run on the method" in str(error)


def test_a_classmethod_is_refused_when_it_is_used() -> None:
    class Wrong:
        @classmethod
        @activity(name="wrong")
        def method(cls) -> None: ...

    if sys.version_info < (3, 13):
        with pytest.raises(InvalidArgument, match="is a classmethod"):
            Wrong.method()


# --- classes ----------------------------------------------------------------------------------------------------------


def with_run(**attributes: Any) -> type:
    @workflow.run
    def main(self: Any) -> None: ...

    return type("Made", (attributes.pop("base", object),), {"main": main, **attributes})


def test_a_class_has_exactly_one_run_method() -> None:
    with pytest.raises(InvalidArgument, match=r"no method is marked with @workflow\.run"):
        workflow(Service)

    @workflow.run
    def other(self: Any) -> None: ...

    with pytest.raises(InvalidArgument, match=r"more than one method is marked.*: main \(.*\), other \(.*\)"):
        workflow(with_run(other=other))


def test_a_run_method_is_inherited_and_a_replacement_must_be_marked_too() -> None:
    base = with_run()
    assert workflow(type("Child", (base,), {})) is not None
    with pytest.raises(InvalidArgument, match="a method that replaces a marked one of a base class is to be marked"):
        workflow(type("Child", (base,), {"main": lambda self: None}))


def test_a_class_is_made_without_arguments() -> None:
    def needs(self: Any, database: str, *, size: int, colour: str = "") -> None: ...
    def needs_nothing(self: Any, *args: Any, colour: str = "", **kwargs: Any) -> None: ...

    with pytest.raises(InvalidArgument, match=r"__init__ requires database, size.* take them in main"):
        workflow(with_run(__init__=needs))
    assert workflow(with_run(__init__=needs_nothing)) is not None


def test_an_abstract_class_is_refused() -> None:
    class Base(ABC):
        @abstractmethod
        def step(self) -> None: ...

    with pytest.raises(InvalidArgument, match="it is abstract"):
        workflow(with_run(base=Base))


def test_run_marks_only_functions() -> None:
    mark: Callable[..., Any] = workflow.run
    with pytest.raises(InvalidArgument, match=r"@workflow\.run cannot take a staticmethod"):
        mark(staticmethod(plain))
    with pytest.raises(InvalidArgument, match="it is a generator"):
        mark(generator)
