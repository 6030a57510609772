"""The names that users may rely on. Adding one is deliberate; losing one breaks their code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import outlast
from outlast.model import errors

FROZEN = """
ActivityError ActivityInfo ActivityLost ActivityTimeout AlreadyStarted ApplicationError BlockingClient BlockingHandle
BlockingUpdateHandle Busy Client CommitUnknown DatabaseTooNew DeterminismViolation DurableCallError Evicted Handle
HistoryEvent InternalError InvalidArgument Limits MessageArguments MessageCall MessageFailed NondeterminismError
NotADatabase NotRegistered OutlastError OutlastInterrupt PayloadError Pending RemoteError Retry RunClosed RunNotFound
StoreUnavailable UpdateHandle UsageError Worker WorkflowCancelled WorkflowFailed WorkflowInfo WorkflowTerminated
__version__ activity connect connect_blocking run workflow
"""

FROZEN_WORKFLOW = """
all_handlers_finished execute info logger now query random run set_query_handler set_signal_handler set_update_handler
signal sleep start unsafe update uuid4 wait
"""
FROZEN_ACTIVITY = "idempotency_key info logger"


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_package_has_exactly_the_frozen_names() -> None:
    assert sorted(outlast.__all__) == sorted(FROZEN.split())
    assert all(hasattr(outlast, name) for name in outlast.__all__)


def test_the_lazy_names_are_those_that_type_checkers_see() -> None:
    (checked,) = [node for node in ast.parse(inspect.getsource(outlast)).body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == outlast._WHERE
    assert set(seen) | {"__version__"} == set(outlast.__all__)


def test_workflow_and_activity_have_exactly_the_frozen_names() -> None:
    assert public(type(outlast.workflow)) == set(FROZEN_WORKFLOW.split())
    assert public(type(outlast.activity)) == set(FROZEN_ACTIVITY.split())


def test_every_error_stands_in_the_tree_and_is_exported() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    tree = errors.__doc__ or ""
    for name, value in classes.items():
        assert re.search(rf"\b{name}\b", tree), f"{name} is missing in the tree of model/errors.py"
        assert value.__doc__, f"{name} has no docstring"
        assert name in outlast.__all__, f"{name} is not exported"


def test_everything_public_is_documented() -> None:
    for name in outlast.__all__:
        value = getattr(outlast, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"outlast.{name} has no docstring"
            members = vars(value).items() if inspect.isclass(value) else ()
            for member, function in members:
                if (
                    inspect.isroutine(function)
                    and not member.startswith("_")
                    and value.__module__.startswith("outlast")
                ):
                    assert inspect.getdoc(getattr(value, member)), f"outlast.{name}.{member} has no docstring"


def test_the_layers_of_the_map_are_the_packages() -> None:
    packages = {path.name for path in Path(outlast.__file__).parent.iterdir() if path.is_dir()}
    assert packages - {"__pycache__"} == {"cli", "sdk", "runtime", "store", "engine", "model"}
