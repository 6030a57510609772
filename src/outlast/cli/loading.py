"""Finding the user's code: `orders.py`, `orders.py:fulfil_order`, `shop.orders`, `shop.orders:fulfil_order`.

A file is imported as a module under its own name, with its folder on `sys.path` as if it had been run; never as
`__main__`, so that what it does only then is left alone. A module is looked for from the current folder, too.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import NamedTuple, NoReturn

from outlast.cli.errors import CallError
from outlast.model.errors import InvalidArgument
from outlast.sdk.durable import Durable
from outlast.sdk.registry import AnyDurable, durable_of


class Target(NamedTuple):
    """What a word of the command line names. `name` is that of something in the module, or None: all of it."""

    module: str
    name: str | None

    @property
    def is_file(self) -> bool:
        return self.module.endswith((".py", ".")) or "/" in self.module or os.sep in self.module

    def __str__(self) -> str:
        return self.module if self.name is None else f"{self.module}:{self.name}"


def parse_target(text: str) -> Target:
    module, colon, name = text.rpartition(":")
    # The colon of a Windows drive is none of ours.
    if not colon or os.sep in name or "/" in name:
        return Target(text, None)
    return Target(module, name)


def load_workflow(text: str) -> AnyDurable:
    """The workflow that `FILE.py:WORKFLOW` names."""
    target = parse_target(text)
    if not target.name or not target.module:
        raise CallError(f"{text!r} does not name a workflow. Write FILE.py:WORKFLOW, such as orders.py:fulfil_order.")
    module = load_module(target)
    known = workflows_of(module)
    found = known.get(target.name) or next((each for each in known.values() if each.name == target.name), None)
    if found is not None:
        return found
    if not known:
        raise CallError(f"{target.module} has no workflow: nothing at its top level is decorated with @workflow")
    if hasattr(module, target.name):
        raise CallError(f"{target.name} in {target.module} is not a workflow; {_which(target.name, known)}")
    raise CallError(f"{target.module} has no workflow {target.name!r}; {_which(target.name, known)}")


def _which(name: str, known: dict[str, AnyDurable]) -> str:
    near = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"


def workflows_of(module: ModuleType) -> dict[str, AnyDurable]:
    """The workflows at the top level of a module, by the names that they have there."""
    found: dict[str, AnyDurable] = {}
    for name, value in vars(module).items():
        # The type is asked first: a lazy proxy of the user's may not like to be asked anything else.
        if issubclass(type(value), Durable | type):
            try:
                durable = durable_of(value)
            except InvalidArgument:
                continue
            if durable.kind == "workflow":
                found[name] = durable
    return found


def load_module(target: Target) -> ModuleType:
    """Import it. Whatever goes wrong in there is told in one line, with the place."""
    if target.is_file:
        path = os.path.abspath(target.module)
        _check_file(target.module, path)
        _on_path(os.path.dirname(path))
        name = os.path.splitext(os.path.basename(path))[0]
    else:
        path = ""
        _on_path(os.getcwd())
        name = target.module
    try:
        return _import_file(name, path) if path else importlib.import_module(name)
    except CallError:
        raise
    except ModuleNotFoundError as error:
        if not path and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CallError(
                f"there is no module {error.name!r}, seen from here. For a file write its path: {name}.py"
            ) from error
        _cannot_import(target, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _cannot_import(target, error)


def _check_file(given: str, path: str) -> None:
    if os.path.isdir(path):
        raise CallError(f"{given} is a folder; name a Python file, or a package as a module: shop.orders")
    if not os.path.exists(path):
        folder = os.path.dirname(path)
        names = [name for name in os.listdir(folder) if name.endswith(".py")] if os.path.isdir(folder) else []
        near = difflib.get_close_matches(os.path.basename(path), names, 3)
        hint = f"; there is {' and '.join(near)}" if near else ""
        raise CallError(f"there is no file {given}{hint}")
    if not path.endswith(".py"):
        raise CallError(f"{given} is not a Python file: its name does not end in .py")


def _on_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _import_file(name: str, path: str) -> ModuleType:
    loaded = sys.modules.get(name)
    if loaded is not None:
        if os.path.realpath(getattr(loaded, "__file__", None) or "") == os.path.realpath(path):
            return loaded
        raise CallError(
            f"{path} cannot be imported as {name!r}: a module of that name is loaded already "
            f"({getattr(loaded, '__file__', None) or 'built in'}). Rename the file."
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _cannot_import(target: Target, error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        why = (
            "it ends the program when it is imported. Put what it does when it is run under "
            '`if __name__ == "__main__":`'
        )
    elif isinstance(error, SyntaxError):
        why = f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    else:
        why = f"{type(error).__name__}: {error}{_place(error)}"
    if "attempted relative import" in str(error):
        why += ". A file of a package is named as a module: package.module:workflow"
    raise CallError(f"cannot import {target.module}: {why}") from error


def _place(error: BaseException) -> str:
    """The innermost line that is neither ours nor the import system's."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", ours + os.sep))
        and os.sep + "importlib" + os.sep not in frame.filename
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
