"""Languages: who reads and writes the JSON of a type. msgspec where it can, pydantic where it must.

msgspec is fast, and used wherever it supports the *whole* tree of types faithfully. It accepts more than that (a class
it does not know fails only when a value is read; pydantic's models and constraints it would pass over), so
`_Examination` walks the tree that msgspec sees and looks for what it must not be given. Then pydantic is tried, if it
is installed; it is imported only here, and only then. If neither will do, registration fails, and the error says what
to change.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import NoneType
from typing import Any, Final, Never, NoReturn, Protocol

import msgspec
from msgspec import Raw, inspect
from msgspec.json import Decoder, Encoder

from outlast.model.errors import InternalError, PayloadError
from outlast.sdk.hints import (
    Names,
    hint_name,
    is_bare_generic,
    reject_impossible,
    settle_local_classes,
    unresolved,
    wants_pydantic,
)


class Language(Protocol):
    """One library's writer and reader for one type."""

    exact: frozenset[type]
    """Types whose values need no second look."""
    strict: bool
    """See `roundtrip.first_loss`."""

    def write(self, value: Any, /) -> bytes: ...

    def read(self, text: bytes | Raw, /) -> Any: ...

    def explain(self, error: Exception, root: str) -> str: ...


def choose_language(hint: Any, where: str, localns: Names) -> Language:
    """Raises PayloadError, with the reason and the way out, if values of this type cannot be read back."""
    if hint in (None, NoReturn, Never):
        return _Msgspec(None, inspect.NoneType(), strict=False)
    reject_impossible(hint, where)
    if wants_pydantic(hint):
        return _pydantic(hint, where, "its Annotated[...] has constraints of pydantic's")
    examination = _Examination(where)
    try:
        tree = _tree(hint, where, localns)
        examination.visit(tree)
        if examination.obstacle is None:
            return _Msgspec(hint, tree, strict=examination.has_any)
    except PayloadError:
        raise
    except Exception as error:  # a TypeError for most; readers of users' types may raise anything
        if "InitVar" in str(error):  # pydantic would take it, and fail at every call
            raise PayloadError(
                f"{where}: a dataclass in {hint_name(hint)} has an InitVar, which an object does not keep, so it could "
                "not be built again. Make it a field, or pass another type."
            ) from None
        return _pydantic(hint, where, str(error))
    return _pydantic(hint, where, examination.obstacle)


def plain_json() -> Language:
    """For values of whose type nothing is known."""
    return _Msgspec(Any, None, strict=True)


def _tree(hint: Any, where: str, localns: Names) -> inspect.Type:
    try:
        return inspect.type_info(hint)
    except NameError:
        settle_local_classes(hint, localns)
    try:
        return inspect.type_info(hint)
    except NameError as error:
        raise unresolved(f"{where}, in a field of {hint_name(hint)}", error) from None


_PLAIN_KEYS = (
    inspect.StrType,
    inspect.IntType,
    inspect.FloatType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.TimeDeltaType,
    inspect.UUIDType,
    inspect.DecimalType,
    inspect.BytesType,
    inspect.AnyType,
)


class _Examination:
    """Walks the tree of a type as msgspec sees it. The first thing that msgspec must not be given is `obstacle`."""

    def __init__(self, where: str) -> None:
        self.obstacle: str | None = None
        self.has_any = False
        self._where = where
        self._seen: set[Any] = set()

    def visit(self, node: inspect.Type) -> None:
        match node:
            case inspect.AnyType():
                self.has_any = True
            case inspect.CustomType(cls=cls) if cls is object:
                self.has_any = True
            case inspect.CustomType(cls=cls):
                self._object(f"msgspec does not know {cls.__module__}.{cls.__qualname__}")
            case inspect.ExtType():
                self._object("msgspec.msgpack.Ext is not JSON")
            case inspect.DictType(key_type=key):
                self._visit_key(key)
                self.visit(node.value_type)
            case inspect.UnionType(types=types) | inspect.TupleType(item_types=types):
                for each in types:
                    self.visit(each)
            case inspect.Metadata(type=inner):
                self.visit(inner)
            case (
                inspect.DataclassType() | inspect.StructType() | inspect.TypedDictType() | inspect.NamedTupleType()
            ) if node.cls not in self._seen:
                self._seen.add(node.cls)
                self._visit_class(node.cls)
                for field in node.fields:
                    self.visit(field.type)
            case (
                inspect.ListType(item_type=item)
                | inspect.VarTupleType(item_type=item)
                | inspect.SetType(item_type=item)
                | inspect.FrozenSetType(item_type=item)
            ):
                self.visit(item)
            case _:
                pass

    def _visit_key(self, key: inspect.Type) -> None:
        keys = key.types if isinstance(key, inspect.UnionType) else (key,)
        if not all(isinstance(each, _PLAIN_KEYS) for each in keys):
            raise PayloadError(
                f"{self._where}: the keys of a JSON object are text, so dict keys must be str, numbers, Enums, dates, "
                "UUIDs or the like. Use a list of pairs."
            )

    def _visit_class(self, cls: Any) -> None:
        if is_bare_generic(cls):
            reject_impossible(cls, self._where)
        if hasattr(cls, "__is_pydantic_dataclass__"):
            self._object(f"{cls.__qualname__} is a dataclass of pydantic's")
        for attribute in getattr(cls, "__attrs_attrs__", ()):
            if attribute.name.startswith("_"):  # msgspec leaves these out when it writes, and only of attrs classes
                raise PayloadError(
                    f"{self._where}: {cls.__qualname__}.{attribute.name} begins with an underscore, and such fields of "
                    "attrs classes cannot be recorded. Rename it, or use a dataclass."
                )

    def _object(self, reason: str) -> None:
        self.obstacle = self.obstacle or reason


# --- msgspec ------------------------------------------------------------------------------------------------------


class UnknownObject(TypeError):
    def __init__(self, value: object) -> None:
        super().__init__(f"{type(value).__module__}.{type(value).__qualname__} is not a type that JSON has")
        self.value = value


def _as_builtin(value: object) -> object:
    """msgspec writes str, int and float, not classes derived from them; such values are equal to their base's."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise UnknownObject(value)


def _as_given(hint: type, value: Any) -> Any:
    # Asked only for `object`, which takes what JSON gives; anything else msgspec does not know went to pydantic.
    if hint is not object:
        raise InternalError(f"msgspec was given the unknown type {hint!r}")
    return value


_encoder = Encoder(enc_hook=_as_builtin)
_EXACT: Final[frozenset[type]] = frozenset((str, int, bool, NoneType))
"""Not float: NaN. Not containers: what is in them."""


def encode_plain(value: Any) -> bytes:
    return _encoder.encode(value)


class _Msgspec:
    def __init__(self, hint: Any, tree: inspect.Type | None, *, strict: bool) -> None:
        self.write: Callable[[Any], bytes] = _encoder.encode
        self.read: Callable[[bytes | Raw], Any] = Decoder(hint, dec_hook=_as_given).decode
        self.exact = _EXACT if tree is None else frozenset(_exact_types(tree))
        self.strict = strict

    def explain(self, error: Exception, root: str) -> str:
        """msgspec says: Expected `int`, got `str` - at `$.items[2].price`."""
        text, _, path = str(error).partition(" - at ")
        if not isinstance(error, msgspec.ValidationError):
            return str(error) or type(error).__name__
        text = text.replace("`", "")
        return f"{text[:1].lower()}{text[1:]} at {path.replace('`', '').replace('$', root) or root}"


def _exact_types(tree: inspect.Type) -> list[type]:
    match tree:
        case inspect.StrType(min_length=None, max_length=None, pattern=None):
            return [str]
        case inspect.IntType(gt=None, ge=None, lt=None, le=None, multiple_of=None):
            return [int]
        case inspect.BoolType():
            return [bool]
        case inspect.NoneType():
            return [NoneType]
        case inspect.UnionType(types=types):
            return [exact for each in types for exact in _exact_types(each)]
        case _:
            return []


# --- pydantic -----------------------------------------------------------------------------------------------------


class _Pydantic:
    """One value is written as the only element of a list, whose brackets are then taken off.

    A TypeAdapter takes a configuration (bytes as base64, here) only for types that could not have one of their own.
    """

    strict = False
    exact: frozenset[type] = frozenset()

    def __init__(self, hint: Any) -> None:
        pydantic: Any = importlib.import_module("pydantic")
        config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        self._adapter: Any = pydantic.TypeAdapter(list[hint], config=config)

    def write(self, value: Any) -> bytes:
        text: bytes = self._adapter.dump_json([value], by_alias=True, round_trip=True, warnings="error")
        return text[1:-1]

    def read(self, text: bytes | Raw) -> Any:
        [value] = self._adapter.validate_json(b"[" + bytes(text) + b"]")
        return value

    def explain(self, error: Exception, root: str) -> str:
        if callable(details := getattr(error, "errors", None)):
            found: Any = details()
            shown = [f"{each['msg']} at {_path(root, each['loc'][1:])}" for each in found[:3]]
            return "; ".join(shown) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        # The serializer's warnings: one line each, behind a heading.
        lines = [line.strip() for line in str(error).splitlines() if "serializer warnings" not in line]
        lines = [line.removeprefix("PydanticSerializationUnexpectedValue(").removesuffix(")") for line in lines]
        return "; ".join(lines[:3]) or type(error).__name__


def _path(root: str, loc: tuple[int | str, ...]) -> str:
    return root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)


def _pydantic(hint: Any, where: str, reason: str) -> Language:
    name = hint_name(hint)
    try:
        return _Pydantic(hint)
    except ImportError as error:
        raise PayloadError(
            f"{where}: values of type {name} cannot be recorded without pydantic ({reason}). "
            "Install it with `pip install outlast[pydantic]`, or use a dataclass of built-in types."
        ) from error
    except Exception as error:
        first_line = str(error).partition("\n")[0].partition(". Set `arbitrary")[0]
        raise PayloadError(
            f"{where}: values of type {name} cannot be recorded: {first_line}. Use a dataclass, a pydantic model, or "
            "built-in types; of an object that lives elsewhere (a connection, a file), pass its name and open it "
            "where it is used."
        ) from error
