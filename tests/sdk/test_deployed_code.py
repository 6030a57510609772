"""Code as it is deployed: renamed while runs are open, installed as a package."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import outlast
from outlast import workflow
from outlast.sdk.registry import Registry
from outlast.sdk.whereabouts import is_user_file


@workflow(name="order-1")
def order(n: int) -> int:
    return n + 1


@workflow(name="order-2", aliases=["order-1"])
def renamed(n: int) -> int:
    return n + 2


@workflow(name="other")
def other(n: int) -> int:
    return n


def test_a_run_of_a_renamed_workflow_is_found_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    assert outlast.run(order, 1, id="7", url=url) == 2
    assert outlast.run(renamed, 1, id="7", url=url) == 2
    with pytest.raises(outlast.AlreadyStarted, match="a run of 'order-1', not of 'other'"):
        outlast.run(other, 1, id="7", url=url)
    assert capsys.readouterr().err == "outlast: already finished: order-1/7 (2 events are recorded)\n"


def test_a_workflow_that_is_installed_as_a_package_is_user_code_once_a_worker_has_it(tmp_path: Path) -> None:
    path = str(tmp_path / "site-packages" / "shop" / "flows.py")
    shop = ModuleType("shop.flows")
    source = "from outlast import workflow\n@workflow\ndef fulfil(n: int) -> int:\n    return n\n"
    exec(compile(source, path, "exec"), vars(shop))
    assert not is_user_file(path)
    Registry(shop)
    assert is_user_file(path)
    assert not is_user_file(str(tmp_path / "site-packages" / "other" / "flows.py"))
