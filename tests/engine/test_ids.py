"""Ids: run ids are UUIDs that sort by time, turn ids tell which node made them."""

from __future__ import annotations

from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.model.ids import TURN_BITS, NodeId, turn_id
from outlast.runtime.ports import SystemEntropy

times = st.integers(0, (2**48 - 1) * 1_000)


@given(times)
def test_a_run_id_is_a_uuid_of_version_7_that_holds_the_time(now_us: int) -> None:
    run_id = SystemEntropy().run_id(now_us)
    value = UUID(hex=run_id)
    assert value.hex == run_id
    assert (value.version, value.variant) == (7, RFC_4122)
    assert value.int >> 80 == now_us // 1_000


@given(times, times)
def test_sorting_run_ids_sorts_runs_by_their_start(one_us: int, other_us: int) -> None:
    entropy = SystemEntropy()
    one, other = entropy.run_id(one_us), entropy.run_id(other_us)
    if one_us // 1_000 < other_us // 1_000:
        assert one < other
    elif one_us // 1_000 > other_us // 1_000:
        assert one > other
    else:
        assert one != other


def test_every_bit_of_a_run_id_that_may_be_random_is() -> None:
    entropy = SystemEntropy()
    ones, zeros = 0, 0
    for _ in range(200):
        value = int(entropy.run_id(0), 16)
        ones |= value
        zeros |= ~value
    random_bits = (2**12 - 1) << 64 | (2**62 - 1)
    assert ones & zeros & (2**128 - 1) == random_bits


def test_two_sources_of_randomness_do_not_repeat_each_other() -> None:
    made = {source.run_id(0) for source in (SystemEntropy(), SystemEntropy()) for _ in range(500)}
    tokens = {source.token() for source in (SystemEntropy(), SystemEntropy()) for _ in range(500)}
    assert (len(made), len(tokens)) == (1_000, 1_000)
    assert {len(token) for token in tokens} == {32}


def test_jitter_is_what_the_retry_policy_takes() -> None:
    entropy = SystemEntropy()
    drawn = [entropy.jitter() for _ in range(1_000)]
    assert all(0.0 <= each < 1.0 for each in drawn)
    assert len(set(drawn)) > 900


@given(st.integers(1, 2**23 - 1), st.integers(0, 2**TURN_BITS - 1))
def test_a_turn_id_holds_its_node_and_its_number_in_63_bits(node: int, counter: int) -> None:
    value = turn_id(NodeId(node), counter)
    assert divmod(value, 2**TURN_BITS) == (node, counter)
    assert value < 2**63


@pytest.mark.parametrize("counter", [-1, 2**TURN_BITS])
def test_a_turn_counter_does_not_run_into_the_node(counter: int) -> None:
    with pytest.raises(AssertionError):
        turn_id(NodeId(1), counter)
