"""Seeds that once found a bug in the real code. They are run with every test run, for ever.

A seed means a course of events only as long as the simulator draws the same from it: when plans or seams change, it
becomes an ordinary seed. What a bug was is therefore also kept as a small test of its own, in
`tests/sim/test_bugs_found.py`.
"""

from __future__ import annotations

BEHIND = "an attempt that had begun was not lost to a new owner whose clock was behind: its number ran twice"

TWICE = "a commit without events that arrived twice was written twice: a task that was delivered already came back"

FIXED: dict[int, str] = {281: BEHIND, 534: BEHIND, 574: BEHIND, 608: BEHIND, 5225: TWICE}
