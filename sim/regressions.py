"""Seeds that once found a bug in the real code. They are run with every test run, for ever.

A seed means a course of events only as long as the simulator draws the same from it: when plans or seams change, it
becomes an ordinary seed. What a bug was is therefore also kept as a small test of its own, in
`tests/sim/test_bugs_found.py`.
"""

from __future__ import annotations

BEHIND = "an attempt that had begun was not lost to a new owner whose clock was behind: its number ran twice"

TWICE = "a commit without events that arrived twice was written twice: a task that was delivered already came back"

DENIED = "a start was told that another run has its id, and was written when that run had ended"

REFUSED = "who asked for an update again, under the same id, was told the refusal of the first time, and it was done"

LEAVING = "a query failed when the worker of its process ended while it was asked"

TWICE_DECIDED = "an update that was refused was read once more, from before its commit, and decided anew"

FIXED: dict[int, str] = {
    **dict.fromkeys((281, 534, 574, 608), BEHIND),
    5225: TWICE,
    1795829314221: DENIED,
    57: LEAVING,
    522: REFUSED,
    7317: TWICE_DECIDED,
}
