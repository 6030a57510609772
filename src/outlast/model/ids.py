"""Names of things. Each is its own type, so that no two can be swapped unnoticed."""

from typing import NewType

Namespace = NewType("Namespace", str)

WorkflowId = NewType("WorkflowId", str)
"""Chosen by the user. At most one open run per namespace has it."""

RunId = NewType("RunId", str)
"""One execution. 32 hex digits of a UUIDv7, so that sorting run ids sorts runs by their start."""

ActivityId = NewType("ActivityId", str)
"""Given by the program, unique within a run. The native SDK counts: "1", "2", ..."""

TimerId = NewType("TimerId", str)
"""Given by the program, unique within a run."""

WaitId = NewType("WaitId", str)
"""Given by the program, unique within a run."""

MessageId = NewType("MessageId", str)
"""Chosen by the sender of a message. A retry with the same id is recognised and not applied twice."""

NodeId = NewType("NodeId", int)
"""One running process with the store open. Given by the store, never used twice in a database."""

TurnId = NewType("TurnId", int)
"""One attempt to commit a turn: the node's id in the high bits, a counter in the low 40."""

TURN_BITS = 40
"""A node that makes 30,000 turns/s takes over a year to use up 2**40 of them."""

DEFAULT_NAMESPACE = Namespace("default")
DEFAULT_QUEUE = "default"


def turn_id(node: NodeId, counter: int) -> TurnId:
    assert 0 <= counter < 1 << TURN_BITS
    return TurnId(node << TURN_BITS | counter)
