"""The simulator lies beside the tests, and is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="package", autouse=True)
def _databases_are_closed() -> Iterator[None]:
    yield
    from sim.database import close_kept

    close_kept()
