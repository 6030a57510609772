"""A worker finds what a history names, and nothing else by the same name."""

import gc
import types
from typing import Any

import pytest

from outlast.model.errors import InvalidArgument, NotRegistered
from outlast.sdk.decorators import Durable, activity, workflow
from outlast.sdk.registry import Registry, activity_of, companions, declared, durable_of, workflow_of


@activity
def pack(n: int) -> int:
    return n


@activity(name="send", aliases=["post", "mail"])
async def send(n: int) -> int:
    return n


@workflow
async def order(n: int) -> int:
    return pack(n) + await send(n)


@workflow
class Approval:
    @workflow.run
    async def main(self) -> None: ...


class Undecorated:
    @workflow.run
    async def main(self) -> None: ...


class InheritsApproval(Approval): ...


class Warehouse:
    def __init__(self, name: str) -> None:
        self.name = name

    @activity
    def stock(self) -> str:
        return self.name

    @staticmethod
    @activity
    def size() -> int:
        return 1


class QuietWarehouse(Warehouse):
    def stock(self) -> str:  # type: ignore[override]
        return "an override that is no activity"


def undecorated() -> None: ...


def module_of(**values: Any) -> types.ModuleType:
    module = types.ModuleType("things")
    vars(module).update(values)
    return module


def make(name: str, **options: Any) -> Durable[..., Any]:
    @activity(name=name, **options)
    def made() -> None: ...

    return made


def test_names_and_aliases_lead_to_what_was_given() -> None:
    registry = Registry(order, Approval, pack, send)
    assert registry.workflow("order") is order
    assert registry.workflow("Approval").cls is Approval
    assert [registry.activity(name) for name in ("pack", "send", "post", "mail")] == [pack, send, send, send]
    assert registry.workflow_names() == ["order", "Approval"]
    assert registry.activity_names() == ["pack", "send", "post", "mail"]
    assert registry.activities() == [pack, send]
    assert [each.name for each in registry.workflows()] == ["order", "Approval"]


def test_a_module_gives_all_that_is_decorated_at_its_top_level() -> None:
    module = module_of(order=order, renamed=pack, Approval=Approval, x=5, undecorated=undecorated, int=int)
    registry = Registry(module)
    assert (registry.workflow_names(), registry.activity_names()) == (["order", "Approval"], ["pack"])
    with pytest.raises(InvalidArgument, match="the module things has nothing at its top level"):
        Registry(module_of(x=5))


def test_a_module_is_read_without_waking_what_is_lazy_in_it() -> None:
    class Lazy:
        @property
        def __class__(self) -> Any:
            raise AssertionError("the proxy was asked for what it stands for")

    assert Registry(module_of(pack=pack, request=Lazy())).activity_names() == ["pack"]


def test_an_instance_gives_its_activities_bound_to_it() -> None:
    warehouse = Warehouse("north")
    registry = Registry(warehouse)
    assert registry.activity_names() == ["Warehouse.stock", "Warehouse.size"]
    assert registry.activity("Warehouse.stock").fn() == "north"
    assert registry.activity("Warehouse.size").fn() == 1
    assert Registry(QuietWarehouse("south")).activity_names() == ["Warehouse.size"]
    assert Registry(warehouse.stock).activity("Warehouse.stock").fn() == "north"


def test_the_same_thing_given_twice_is_one_thing() -> None:
    warehouse = Warehouse("north")
    registry = Registry(pack, pack, pack.options(queue="q"), module_of(pack=pack), warehouse, warehouse.stock)
    assert [each.name for each in registry.activities()] == ["pack", "Warehouse.stock", "Warehouse.size"]


def test_a_file_that_is_main_and_is_imported_too_is_one_thing() -> None:
    source = "from outlast.sdk.decorators import activity\n@activity\ndef twice(): ...\n"
    modules = [module_of(__name__=name) for name in ("__main__", "app")]
    for module in modules:
        exec(compile(source, "/app.py", "exec"), vars(module))
    first, second = (vars(module)["twice"] for module in modules)
    assert first is not second
    assert Registry(*modules).activities() == [first]


def test_two_things_under_one_name_or_alias_are_refused_with_both_places() -> None:
    first, second, third = make("a"), make("b", aliases=["a"]), make("a")
    for pair in ((first, second), (second, first), (first, third)):
        with pytest.raises(InvalidArgument) as caught:
            Registry(*pair)
        text = str(caught.value)
        assert text.startswith("two different things are called 'a': ")
        assert text.count(f"{__file__}:") == 2
    with pytest.raises(InvalidArgument, match=r"of the Warehouse at 0x.* of the Warehouse at 0x"):
        Registry(Warehouse("north").stock, Warehouse("south").stock)


def test_a_workflow_and_an_activity_may_share_a_name() -> None:
    activity_called_order = make("order")
    registry = Registry(order, activity_called_order)
    assert registry.workflow("order") is order
    assert registry.activity("order") is activity_called_order


def test_a_name_that_is_not_there_is_answered_with_near_ones() -> None:
    registry = Registry(order, pack, send)
    with pytest.raises(NotRegistered, match=r"no workflow called 'oder' .* Did you mean 'order'\?"):
        registry.workflow("oder")
    with pytest.raises(NotRegistered, match=r"no activity called 'zzz'.* It hosts 'mail', 'pack', 'post', 'send'\."):
        registry.activity("zzz")
    with pytest.raises(NotRegistered, match=r"It hosts no workflow at all\..*@workflow\(aliases=\[\"x\"\]\)"):
        Registry(pack).workflow("x")
    with pytest.raises(NotRegistered, match="and 2 more"):
        Registry(*(make(f"step {n}") for n in range(12))).activity("zzz")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (undecorated, "the function undecorated is neither an activity nor a workflow: put @activity or @workflow"),
        (Undecorated, "the class Undecorated has a method marked with @workflow.run.* put @workflow above the class"),
        (InheritsApproval, "the class InheritsApproval has a method marked with @workflow.run"),
        (Warehouse, r"Warehouse has activities as methods: give the worker an instance, Warehouse\(\.\.\.\)"),
        (Warehouse.stock, "is a method: give the worker an instance of Warehouse"),
        (int, "the class int is not a workflow"),
        (5, "a worker cannot host 5. It takes"),
        ("order", "a worker cannot host 'order'"),
        (Approval(), "a worker cannot host <.*Approval object"),
    ],
)
def test_what_a_worker_cannot_host_is_refused(target: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Registry(target)


def test_an_instance_with_a_classmethod_as_activity_is_refused() -> None:
    class Wrong:
        @classmethod
        @activity(name="wrong")
        def method(cls) -> None: ...

    with pytest.raises(InvalidArgument, match="method is a classmethod and an activity"):
        Registry(Wrong())


# --- what users pass --------------------------------------------------------------------------------------------------


def test_the_plain_function_leads_to_what_was_made_of_it() -> None:
    assert durable_of(order.fn) is order
    assert workflow_of(Approval).cls is Approval
    assert activity_of(pack.fn, "test") is pack
    with pytest.raises(InvalidArgument, match="pack is an activity, and a client starts workflows"):
        workflow_of(pack)
    with pytest.raises(InvalidArgument, match="'order' is neither an activity nor a workflow; expected a function"):
        workflow_of("order")


# --- what is declared in the process ----------------------------------------------------------------------------------


def test_what_is_declared_is_remembered_as_long_as_it_lives() -> None:
    short_lived = make("short lived")
    assert short_lived in declared("activity")
    assert short_lived not in declared("workflow")
    del short_lived
    gc.collect()
    names = [each.name for each in declared()]
    assert "short lived" not in names
    assert {"pack", "send", "order", "Approval"} <= set(names)
    assert "Warehouse.stock" not in names


def test_companions_are_what_the_workflow_can_name_before_what_else_is_declared() -> None:
    elsewhere = make("pack")
    stranger = make("a stranger")
    found = companions(order)
    assert pack in found
    assert send in found
    assert stranger in found
    assert elsewhere not in found
    assert Registry(order, *found).activity("pack") is pack


def test_companions_leave_out_names_that_could_mean_either() -> None:
    one, other = make("either", aliases=["or"]), make("or")
    found = companions(order)
    assert one not in found
    assert other not in found
    assert Registry(order, *found).activity("pack") is pack
    del one, other


def test_companions_come_from_the_function_around_and_from_instances_and_imported_modules() -> None:
    local, near = make("pack"), Warehouse("near")
    imported = module_of(step=make("imported step"))

    @workflow(name="local order")
    def local_order() -> object:
        return local, near, imported

    names = {each.name: each for each in companions(local_order)}
    assert names["Warehouse.stock"].fn() == "near"
    assert names["imported step"] is vars(imported)["step"]


def test_a_later_definition_of_the_same_function_replaces_the_earlier() -> None:
    cell = "from outlast.sdk.decorators import activity, workflow\n@activity\ndef cell_step(): ...\n"
    module = module_of(__name__="notebook")
    exec(compile(cell, "<cell 1>", "exec"), vars(module))
    first = vars(module)["cell_step"]
    exec(compile(cell, "<cell 2>", "exec"), vars(module))
    second = vars(module)["cell_step"]
    found = companions(order)
    assert second in found
    assert first not in found
