"""Arguments that are given as JSON: what is misspelt is refused, and what counts is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest

from outlast.model.errors import PayloadError
from outlast.sdk.converter import Converter


@dataclass
class Line:
    price: int
    note: str = ""


@dataclass
class Order:
    id: str
    lines: list[Line] = field(default_factory=list)
    rebate: int | None = None


class Sparse(msgspec.Struct, omit_defaults=True, rename="camel"):
    unit_price: int = 0
    anything: Any = None


class Options(TypedDict, total=False):
    colour: str


class Model(pydantic.BaseModel):
    n: int = pydantic.Field(default=1, validation_alias=pydantic.AliasChoices("n", "count"))
    inner: dict[str, int] = {}


class Moved(pydantic.BaseModel):
    new: int = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def read_old(cls, data: Any) -> Any:
        return {"new": data["old"]} if "old" in data else data


def read(hint: Any, given: Any) -> Any:
    plan = Converter().plan(hint, "parameter 'order' of fulfil", root="order")
    return plan.decode(plan.from_json(given))


@pytest.mark.parametrize(
    ("hint", "given", "path"),
    [
        (Order, {"id": "7", "rebbate": 5}, "order.rebbate"),
        (Order, {"id": "7", "lines": [{"price": 1}, {"price": 2, "notes": "x"}]}, "order.lines[1].notes"),
        (dict[str, Order], {"a": {"id": "7", "x": None}}, "order.a.x"),
        (Order | None, {"id": "7", "lines": [], "Rebate": 1}, "order.Rebate"),
        (Sparse, {"unit_price": 3}, "order.unit_price"),
        (Options, {"color": "red"}, "order.color"),
        (Model, {"m": 3}, "order.m"),
        (tuple[Line, ...], [{"price": 1, "prise": 2}], "order[0].prise"),
    ],
)
def test_a_misspelt_field_is_refused_and_named(hint: Any, given: Any, path: str) -> None:
    before = msgspec.json.encode(given)
    with pytest.raises(PayloadError, match="nothing reads") as caught:
        read(hint, given)
    assert f"parameter 'order' of fulfil: nothing reads {path}, " in str(caught.value)
    assert msgspec.json.encode(given) == before


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [
        (Order, {"id": "7", "rebate": None}, Order("7")),
        (Sparse, {"unitPrice": 0, "anything": None}, Sparse()),
        (Sparse, {"unitPrice": 2, "anything": {"any": "thing"}}, Sparse(2, {"any": "thing"})),
        (Model, {"count": 3}, Model(n=3)),
        (Model, {"count": 1, "inner": {"x": 1}}, Model(inner={"x": 1})),
        (Moved, {"old": 4}, Moved(new=4)),
        (dict[float, str], {"1e0": "a"}, {1.0: "a"}),
        (Annotated[set[int], msgspec.Meta(max_length=3)], [3, 1, 2], {1, 2, 3}),
        (Any, {"a": [{"b": None}]}, {"a": [{"b": None}]}),
    ],
)
def test_a_field_that_counts_is_taken_though_it_is_written_otherwise_or_not_at_all(
    hint: Any, given: Any, value: Any
) -> None:
    assert read(hint, given) == value


def test_a_history_of_older_code_may_hold_fields_that_are_gone() -> None:
    plan = Converter().plan(Line, "value")
    recorded = Converter().plan(dict[str, int], "value").encode({"price": 1, "gone": 2})
    assert plan.decode(recorded) == Line(1)
