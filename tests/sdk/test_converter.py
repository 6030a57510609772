"""What a call may carry, and that it comes back as it was."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NoReturn, Required, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest

from outlast.model.errors import InvalidArgument, PayloadError
from outlast.model.payloads import NO_ARGUMENTS, Arguments, Payload
from outlast.sdk.converter import CallPlan, Converter, UntypedResultWarning

T = TypeVar("T")


@dataclass
class Item:
    price: float
    name: str = "thing"


@dataclass(frozen=True, slots=True)
class Order:
    id: str
    items: list[Item]
    at: datetime | None = None


@dataclass
class Box(Generic[T]):
    content: T


@dataclass(eq=False)
class Incomparable:
    n: int
    tags: tuple[str, ...] = ()


@dataclass
class Private:
    _hidden: int
    later: int = field(default=1, init=False)


class Point(NamedTuple):
    x: int
    y: int = 0


class Movie(TypedDict, total=False):
    title: Required[str]
    year: int


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Shape(msgspec.Struct, tag=True):
    pass


class Circle(Shape, tag=True):
    r: float


class Square(Shape, tag=True):
    side: float


class Model(pydantic.BaseModel):
    n: int
    order: Order | None = None
    where: Path = Path("/")


class Renamed(pydantic.BaseModel):
    n: int = pydantic.Field(alias="theNumber")


def plan(hint: Any, converter: Converter | None = None) -> Any:
    return (converter or Converter()).plan(hint, "parameter 'v' of f", root="v")


BERLIN_TWICE = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))

FAITHFUL: list[tuple[Any, Any]] = [
    (str, "h\u00e9llo \u2028 \0 \U0001f600"),
    (str, ""),
    (int, 10**40),
    (int, -(2**63)),
    (float, -0.1),
    (float, 1),
    (bool, True),
    (None, None),
    (str | None, None),
    (int | str | None, "x"),
    (float | int, 3),
    (bytes, b"\xff\x00"),
    (UUID, UUID(int=5)),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("NaN")),
    (datetime, datetime(2024, 1, 2, 3, 4, 5, 678901)),
    (datetime, datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))),
    (datetime, BERLIN_TWICE),
    (date, date(1, 1, 1)),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (Color, Color.RED),
    (Level, Level.HIGH),
    (Literal["a", 1], 1),
    (list[int], [1, 2]),
    (list, [1, "x", None]),
    (tuple[int, str], (1, "x")),
    (tuple[int, ...], (1, 2, 3)),
    (set[str], {"a", "b", "c"}),
    (frozenset[int], frozenset((1, 99, 17))),
    (dict[str, float], {"a": 1.5}),
    (dict[int, str], {1: "a"}),
    (dict[UUID, int], {UUID(int=5): 1}),
    (dict[str, Any], {"a": [1, {"b": None}]}),
    (dict[str, object], {"a": [1, {"b": None}]}),
    (Order, Order("1", [Item(1.5)], datetime(2024, 1, 1))),
    (list[Order | None], [None, Order("1", [])]),
    (Box[int], Box(3)),
    (Box[list[Item]], Box([Item(1.0)])),
    (Incomparable, Incomparable(1, ("a",))),
    (Private, Private(3)),
    (Point, Point(1, 2)),
    (Movie, {"title": "x"}),
    (Circle | Square, Square(2.0)),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (Any, {"a": [1, 2.5, "x", None, True]}),
    # pydantic's
    (Model, Model(n=1, order=Order("1", [Item(1.0)]), where=Path("/tmp"))),
    (list[Model], [Model(n=1)]),
    (dict[str, Model | int], {"a": 1, "b": Model(n=2)}),
    (Renamed, Renamed(theNumber=3)),
    (Order | Item, Item(1.0)),
    (Order | Item, Order("a", [])),
    (datetime | str, datetime(2024, 1, 1)),
    (datetime | str, "tomorrow"),
    (Path, Path("/a/b")),
    (Path | None, None),
    (bytes | int, b"\xff"),
    (collections.deque[int], collections.deque([1, 2])),
    (complex, 1j),
    (Annotated[int, pydantic.Field(gt=0)], 3),
]


@pytest.mark.parametrize(("hint", "value"), FAITHFUL, ids=lambda each: repr(each)[:40])
def test_a_value_that_fits_its_hint_comes_back_equal(hint: Any, value: Any) -> None:
    each = plan(hint)
    payload = each.encode(value)
    assert payload.encoding == "json"
    msgspec.json.decode(payload.to_bytes())
    back = each.decode(payload)
    assert type(back) is type(value) or back == value
    if hint is Incomparable:
        assert (back.n, back.tags) == (value.n, value.tags)
    elif isinstance(value, Decimal):
        assert str(back) == str(value)
    elif value is BERLIN_TWICE:
        assert back.astimezone(UTC) == value.astimezone(UTC)
    else:
        assert back == value


@pytest.mark.parametrize(
    ("hint", "value", "path"),
    [
        (int, "x", "v"),
        (int, True, "v"),
        (int, 1.0, "v"),
        (bool, 1, "v"),
        (str, None, "v"),
        (None, 1, "v"),
        (str | None, 1, "v"),
        (list[int], [1, "2"], "v[1]"),
        (Order, Order("1", [Item(1.0), Item("9")]), "v.items[1].price"),  # type: ignore[arg-type]
        (dict[str, list[Item]], {"k": [Item(1.0, 3)]}, "v[...][0].name"),  # type: ignore[arg-type]
        (Order, {"id": "1", "items": []}, "v: dict would come back as Order"),
        (date, "2024-01-01", "v: str would come back as date"),
        (Color, "red", "v: str would come back as Color"),
        (Annotated[int, msgspec.Meta(ge=0)], -1, "v"),
        (Annotated[int, pydantic.Field(gt=0)], -1, "v"),
        (Model, Model.model_construct(n="x"), "'n'"),
        (list[Model], [3], "Model"),
        (Model, {"n": 1}, "Model"),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_a_value_that_does_not_fit_is_refused_at_the_caller_with_its_path(hint: Any, value: Any, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        plan(hint).encode(value)
    assert str(caught.value).startswith("parameter 'v' of f")
    assert path in str(caught.value)


@dataclass
class SubItem(Item):
    extra: int = 1


class SubModel(Model):
    extra: int = 1


@dataclass
class Counting:
    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Secret(pydantic.BaseModel):
    word: pydantic.SecretStr


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (Item, SubItem(1.0), "SubItem would come back as Item"),
        (list[Item], [SubItem(1.0)], "v[0]: SubItem would come back as Item"),
        (Model, SubModel(n=1), "SubModel would come back as Model"),
        (Counting, Counting(1), "v.n: the value (a int) would come back as another"),
        (Secret, Secret(word=pydantic.SecretStr("x")), "v.word"),
        (Movie, {"title": "x", "yaer": 1}, "'yaer' would be lost"),
        (datetime | str, "2024-01-01T00:00:00", "str would come back as datetime"),
        (datetime, datetime(1900, 1, 1, tzinfo=timezone(timedelta(seconds=3208))), "whole minutes"),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_what_would_come_back_as_something_else_is_refused(hint: Any, value: Any, words: str) -> None:
    with pytest.raises(PayloadError, match="would not come back as it is") as caught:
        plan(hint).encode(value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((1, 2), "v: tuple would come back as list"),
        ({"a": [(1,)]}, "v['a'][0]: tuple would come back as list"),
        ({1: "a"}, "the key 1 (int) would come back as something else"),
        ({"a", "b"}, "set would come back as list"),
        (datetime(2024, 1, 1), "datetime would come back as str"),
        (Decimal("1.1"), "Decimal would come back as str"),
        (b"x", "bytes would come back as str"),
        (Item(1.0), "Item would come back as dict"),
        ({"a": {"b": object()}}, "at v['a']['b']: builtins.object"),
    ],
    ids=lambda each: repr(each)[:40],
)
@pytest.mark.parametrize("hint", [Any, object])
def test_without_a_hint_what_is_not_plain_json_is_refused_and_the_advice_is_to_annotate(
    hint: Any, value: Any, words: str
) -> None:
    with pytest.raises(PayloadError, match=r"(?i)annotate it") as caught:
        plan(hint).encode(value)
    assert words in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("hint", "wrap", "path"),
    [
        (float, lambda x: x, "v"),
        (float | None, lambda x: x, "v"),
        (Any, lambda x: {"a": [x]}, "v['a'][0]"),
        (list[float | None], lambda x: [1.0, x], "v[1]"),
        (Order, lambda x: Order("1", [Item(1.0), Item(x)]), "v.items[1].price"),
        (list[Model], lambda x: [Model(n=1, order=Order("1", [Item(x)]))], "v[0].order.items[0].price"),
    ],
    ids=["float", "optional", "any", "list", "dataclass", "model"],
)
def test_nan_and_infinity_never_become_null_silently(
    bad: float, hint: Any, wrap: Callable[[float], Any], path: str
) -> None:
    with pytest.raises(PayloadError, match="cannot be written as JSON") as caught:
        plan(hint).encode(wrap(bad))
    assert f"at {path}:" in str(caught.value)


@pytest.mark.parametrize("hint", [str, Any, list[str], Model | str])
def test_half_a_surrogate_pair_is_refused_with_its_place(hint: Any) -> None:
    with pytest.raises(PayloadError, match="surrogate"):
        plan(hint).encode(["\ud800"] if hint == list[str] else "a\udfff")


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [101, 500, 5_000, 200_000])
def test_nesting_that_a_reader_could_fail_at_is_refused(levels: int) -> None:
    value = nested(levels)
    with pytest.raises(PayloadError, match="nested too deeply"):
        plan(Any).encode(value)
    while value:  # so that freeing it does not recurse either
        value = value.pop()


def test_nesting_within_the_limit_is_accepted_whatever_the_text_inside() -> None:
    value = [nested(99), '["{' * 200, "\\", {"a": [[]] * 300}]
    each = plan(list)
    assert each.decode(each.encode(value)) == value


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(PayloadError, match="refers to itself"):
        plan(Any).encode(value)


def test_a_payload_over_the_limit_is_refused_with_a_way_out() -> None:
    with pytest.raises(PayloadError, match="Store it elsewhere"):
        plan(str).encode("x" * (2 * 1024 * 1024))
    plan(str).encode("x" * (2 * 1024 * 1024 - 2))


def test_an_integer_that_python_will_not_print_is_refused() -> None:
    with pytest.raises(PayloadError, match="parameter 'v' of f"):
        plan(int).encode(10**5_000)


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


def test_values_of_classes_derived_from_str_and_numbers_are_written_as_their_base() -> None:
    assert plan(str).encode(Text("x")).to_bytes() == b'"x"'
    assert plan(Any).encode([Text("x"), Level.HIGH]).to_bytes() == b'["x",2]'


class Moody:
    """Compares as numpy's arrays do."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]


@dataclass(eq=False)
class WithMoodyComparison(Moody):
    n: int


def test_a_class_whose_comparison_raises_can_still_be_passed() -> None:
    each = plan(WithMoodyComparison)
    assert each.decode(each.encode(WithMoodyComparison(3))).n == 3


# --- what the code can read later -------------------------------------------------------------------------------------


def test_a_history_of_older_code_is_read_with_defaults_and_without_fields_that_are_gone() -> None:
    back = plan(Item).decode(Payload.from_json(b'{"price":1,"gone":true}'))
    assert back == Item(1.0)


def test_what_is_recorded_and_no_longer_fits_names_the_field() -> None:
    with pytest.raises(PayloadError, match=r"does not fit the type that the code expects now.*at v\.price") as caught:
        plan(Item).decode(Payload.from_json(b'{"price":"1"}'))
    assert "default" in str(caught.value)
    with pytest.raises(PayloadError, match="missing required field price"):
        plan(Item).decode(Payload.from_json(b"{}"))
    with pytest.raises(PayloadError, match=r"at v\.n"):
        plan(Model).decode(Payload.from_json(b'{"n":"x"}'))


@pytest.mark.parametrize("hint", [Item, int, Any, Model])
@pytest.mark.parametrize("text", [b"", b"{", b"nonsense", b"[" * 10_000, b"\xff"])
def test_damaged_bytes_give_the_one_error(hint: Any, text: bytes) -> None:
    with pytest.raises(PayloadError):
        plan(hint).decode(Payload.from_json(text))


# --- types that cannot be recorded ------------------------------------------------------------------------------------


class Connection:
    pass


def test_attrs_classes_are_recorded_unless_a_field_would_be_left_out() -> None:
    attrs = pytest.importorskip("attrs")
    good = attrs.make_class("Good", {"n": attrs.field(type=int), "m": attrs.field(type=list[Item], factory=list)})
    assert plan(good).decode(plan(good).encode(good(1, [Item(1.0)]))) == good(1, [Item(1.0)])
    with pytest.raises(PayloadError, match=r"at v\.n"):
        plan(good).encode(good("x"))
    private = attrs.make_class("Private", {"_n": attrs.field(type=int)})
    with pytest.raises(PayloadError, match=r"Private\._n begins with an underscore"):
        plan(private)


@dataclass
class WithInitVar:
    n: int
    seed: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Connection, "Connection cannot be recorded"),
        (list[Connection], "Connection"),
        (dict[tuple[int, int], str], "list of pairs"),
        (T, "type variable"),
        (list[T], "type variable"),  # type: ignore[valid-type]
        (Box, "Box[...]"),
        (list[Box], "Box[...]"),
        (Callable[[], int], "a history holds data"),
        (type[int], "a history holds data"),
        (Iterator[int], "only once"),
        ("Order", "never resolved"),
        (WithInitVar, "InitVar"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_type_that_cannot_be_read_back_is_refused_at_registration(hint: Any, words: str) -> None:
    with pytest.raises(PayloadError) as caught:
        plan(hint)
    assert str(caught.value).startswith("parameter 'v' of f")
    assert words in str(caught.value)


def test_without_pydantic_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(PayloadError, match=r"parameter 'v' of f.*pip install outlast\[pydantic\]"):
        plan(datetime | str)
    assert plan(Order).encode(Order("1", [])).to_bytes() == b'{"id":"1","items":[],"at":null}'


def test_pydantic_is_not_imported_where_it_is_not_needed() -> None:
    program = (
        "import sys; from outlast.sdk.converter import CallPlan, Converter\n"
        "def f(a: int, b: list[str]) -> dict[str, float]: ...\n"
        "CallPlan.of(f, Converter(), name='f').encode_arguments((1, ['x']), {})\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- codecs -----------------------------------------------------------------------------------------------------------


class Zip:
    name = "zip"

    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes) -> bytes:
        return zlib.decompress(data)


def test_a_codec_sees_every_payload_and_older_plain_ones_stay_readable() -> None:
    for hint, value in ((Order, Order("1", [])), (Model, Model(n=1)), (Any, [1])):
        each = plan(hint, Converter(Zip()))
        payload = each.encode(value)
        assert payload.encoding == "zip"
        assert msgspec.json.decode(msgspec.json.encode(payload), type=Payload) == payload
        assert each.decode(payload) == value
        assert each.decode(plan(hint).encode(value)) == value


def test_a_codec_that_fails_or_is_missing_is_named() -> None:
    with pytest.raises(PayloadError, match=r"parameter 'v' of f: .*'zip'.*there is no codec here"):
        plan(int).decode(plan(int, Converter(Zip())).encode(1))
    with pytest.raises(PayloadError, match=r"the codec 'zip' failed to decode"):
        plan(int, Converter(Zip())).decode(Payload.from_bytes(b"not zip", "zip"))

    class Broken(Zip):
        def encode(self, data: bytes) -> bytes:
            raise OSError("no key")

    with pytest.raises(PayloadError, match=r"the codec 'zip' failed to encode.*no key"):
        plan(int, Converter(Broken())).encode(1)


def test_a_codec_cannot_pass_itself_off_as_plain_json() -> None:
    class Json(Zip):
        name = "json"

    with pytest.raises(InvalidArgument, match="name of its own"):
        Converter(Json())


# --- calls ------------------------------------------------------------------------------------------------------------


def call_plan(fn: Callable[..., Any], **options: Any) -> CallPlan:
    return CallPlan.of(fn, Converter(), name=fn.__name__, **options)


def everything(a: int, /, b: str, c: float = 1.5, *rest: date, d: bool, e: Color = Color.RED, **more: Item) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, "x"), {"d": True}),
        ((1,), {"b": "x", "d": False, "e": Color.BLUE}),
        ((1, "x", 2.5, date(2024, 1, 1), date(2024, 1, 2)), {"d": True}),
        ((1, "x"), {"d": True, "a": Item(1.0), "other": Item(2.0)}),
    ],
)
def test_arguments_are_kept_as_they_were_given_for_every_kind_of_parameter(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    each = call_plan(everything)
    arguments = each.encode_arguments(args, kwargs)
    assert (len(arguments.args), list(arguments.kwargs)) == (len(args), list(kwargs))
    assert each.decode_arguments(arguments) == (args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "missing a required"),
        ((1, "x"), {}, "argument: 'd'"),
        ((1, "x"), {"b": "y", "d": True}, "multiple values for argument 'b'"),
    ],
)
def test_a_call_that_python_would_refuse_is_refused_at_the_caller(
    args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=r"everything\(a, /, b") as caught:
        call_plan(everything).encode_arguments(args, kwargs)
    assert words in str(caught.value)


def test_too_many_and_unexpected_arguments_are_refused_by_name() -> None:
    def f(n: int) -> None: ...

    with pytest.raises(InvalidArgument, match="too many positional"):
        call_plan(f).encode_arguments((1, 2), {})
    with pytest.raises(InvalidArgument, match="unexpected keyword argument 'm'"):
        call_plan(f).encode_arguments((1,), {"m": 2})


@pytest.mark.parametrize(
    ("args", "kwargs", "name"),
    [
        (("x", "x"), {"d": True}, "a"),
        ((1, "x"), {"d": 1}, "d"),
        ((1, "x", 1.0, "2024"), {"d": True}, "rest"),
        ((1, "x"), {"d": True, "other": 3}, "more"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    with pytest.raises(PayloadError, match=f"^parameter '{name}' of everything"):
        call_plan(everything).encode_arguments(args, kwargs)


def test_a_parameter_with_a_default_can_be_added_while_runs_are_open() -> None:
    def before(n: int) -> None: ...

    def after(n: int, m: int = 2) -> None: ...

    def broken(n: int, m: int) -> None: ...

    recorded = call_plan(before).encode_arguments((1,), {})
    assert call_plan(after).decode_arguments(recorded) == ((1,), {})
    with pytest.raises(PayloadError, match=r"broken\(n, m\).*recorded.*missing a required argument: 'm'"):
        call_plan(broken).decode_arguments(recorded)
    with pytest.raises(PayloadError, match="too many positional"):
        call_plan(before).decode_arguments(call_plan(after).encode_arguments((1, 2), {}))


def test_no_arguments_are_no_arguments() -> None:
    def f() -> None: ...

    assert call_plan(f).encode_arguments((), {}) is NO_ARGUMENTS
    assert call_plan(f).decode_arguments(Arguments()) == ((), {})


def test_methods_and_wrapped_functions_are_read_as_their_caller_sees_them() -> None:
    import functools

    class Shop:
        def sell(self, item: Item) -> float:
            return item.price

    each = call_plan(Shop.sell, skip_self=True)
    assert each.decode_arguments(each.encode_arguments((Item(1.0),), {})) == ((Item(1.0),), {})

    @functools.wraps(Shop.sell)
    def wrapped(*args: Any, **kwargs: Any) -> Any: ...

    with pytest.raises(PayloadError, match="parameter 'item' of sell"):
        call_plan(wrapped, skip_self=True).encode_arguments((1,), {})


def test_json_arguments_of_the_command_line_are_read_by_their_hints() -> None:
    def f(order: Order, when: date, color: Color = Color.RED) -> None: ...

    each = call_plan(f)
    by_position = each.encode_json_arguments([{"id": "1", "items": [{"price": 2}]}, "2024-01-31"])
    assert each.decode_arguments(by_position) == ((Order("1", [Item(2.0)]), date(2024, 1, 31)), {})
    by_name = each.encode_json_arguments({"when": "2024-01-31", "color": "blue", "order": {"id": "1", "items": []}})
    assert each.decode_arguments(by_name)[1]["color"] is Color.BLUE
    with pytest.raises(PayloadError, match=r"parameter 'order' of f .* at order\.items\[0\]\.price"):
        each.encode_json_arguments([{"id": "1", "items": [{"price": "x"}]}, "2024-01-31"])
    with pytest.raises(InvalidArgument, match="missing a required argument: 'when'"):
        each.encode_json_arguments({"order": {}})
    with pytest.raises(InvalidArgument, match="JSON array"):
        each.encode_json_arguments("text")


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_result_is_checked_like_an_argument() -> None:
    def f() -> list[Item]: ...

    each = call_plan(f)
    assert each.decode_result(each.encode_result([Item(1.0)])) == [Item(1.0)]
    with pytest.raises(PayloadError, match=r"^result of f .* at result\[0\]\.price"):
        each.encode_result([Item("x")])  # type: ignore[arg-type]


def test_a_function_that_promises_none_must_return_none() -> None:
    def f() -> None: ...

    def g() -> NoReturn: ...

    for fn in (f, g):
        assert call_plan(fn).decode_result(call_plan(fn).encode_result(None)) is None
        with pytest.raises(PayloadError, match="result of"):
            call_plan(fn).encode_result(3)


def test_a_missing_result_annotation_warns_once_at_the_function_and_keeps_plain_json() -> None:
    def f():  # type: ignore[no-untyped-def]
        ...

    with pytest.warns(UntypedResultWarning, match="f has no result annotation") as caught:
        each = call_plan(f)
    assert [(Path(w.filename), w.lineno) for w in caught] == [(Path(__file__), f.__code__.co_firstlineno)]
    assert each.decode_result(each.encode_result({"a": [1]})) == {"a": [1]}
    with pytest.raises(PayloadError, match="annotate it"):
        each.encode_result((1, 2))


# --- names in hints ---------------------------------------------------------------------------------------------------


def test_hints_that_name_classes_of_the_defining_frame_are_resolved() -> None:
    @dataclass
    class Inner:
        n: int

    @dataclass
    class Outer:
        inner: Inner
        more: list[Inner]
        next: Outer | None = None

    def f(outer: Outer, things: Sequence[Inner]) -> Outer: ...

    each = call_plan(f, localns=locals())
    value = Outer(Inner(1), [Inner(2)], Outer(Inner(3), []))
    assert each.decode_arguments(each.encode_arguments((value, [Inner(4)]), {})) == ((value, [Inner(4)]), {})
    assert each.decode_result(each.encode_result(value)) == value


def test_a_name_that_cannot_be_resolved_is_reported_and_never_taken_for_any() -> None:
    def f(a: int, b: list[Nowhere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def g() -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

    @dataclass
    class Holder:
        x: Nowhere  # type: ignore[name-defined]  # noqa: F821

    def h(holder: Holder) -> None: ...

    with pytest.raises(PayloadError, match=r"parameter 'b' of f: .*'Nowhere'"):
        call_plan(f)
    with pytest.raises(PayloadError, match=r"result of g: .*'Nowhere'"):
        call_plan(g)
    with pytest.raises(PayloadError, match=r"parameter 'holder' of h.*'Nowhere'"):
        call_plan(h, localns={"Holder": Holder})
