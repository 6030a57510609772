"""Each planted bug is found within its budget of seeds, and the clean system passes the same seeds.

A budget is at least four times what was needed when it was measured, rounded up to the next step of `STEPS`: every
change of the runtime shuffles the courses of all seeds, and must not make a test fail that finds a bug a little later.
A simulator that has grown blind to a kind of bug fails here. Only such a failure takes as long as the budget allows.
"""

from __future__ import annotations

import pytest
from sim.bugs import BUGS, planted
from sim.campaign import run_seeds

QUICK = 20
STEPS = (QUICK, 100, 400, 800, 2_000)
CLEAN = 800
"""Seeds that the clean system must pass: all in which a bug was found when the budgets were measured."""

BUDGETS: dict[str, int] = {
    "no fence": 800,
    "the journal's index is the only fence": 800,
    "a fenced run is dropped without a look": 100,
    "a turn is committed again after CommitUnknown": 100,
    "a created run is forgotten after CommitUnknown": 800,
    "the answers of a batch are told in the wrong order": QUICK,
    "a batch that fails for one run fails the others": 2000,
    "effects leave before the commit": QUICK,
    "a start is acknowledged before the commit": QUICK,
    "a run is given back without a second look into its mailbox": 100,
    "a run is closed without a second look into its mailbox": 400,
    "mail is consumed whether it was read or not": 400,
    "mail does not wake a run that nobody owns": QUICK,
    "a message counts twice if it is sent again after it was consumed": 400,
    "parking drops the mail that waits": 400,
    "timers fire early": QUICK,
    "a timer that goes off while the clock is set back is forgotten": QUICK,
    "a run is given back without the time at which it is due": QUICK,
    "a lost hint is never made up for": QUICK,
    "nobody notices that a node has died": QUICK,
    "the dead may claim runs": 100,
    "runs of the living may be claimed": QUICK,
    "the dead are not told by their heartbeat": 800,
    "a node that does not know what it has claimed goes on": 400,
    "claims are counted and never set back": QUICK,
    "takeover does not journal that attempts are lost": QUICK,
    "a retry policy is not kept to": QUICK,
    "a completion is fed twice": QUICK,
    "the end of an attempt is forgotten when its node stops": QUICK,
    "a task stays when its outcome is delivered": QUICK,
    "a task of a dead node is run again under the same number": 800,
    "answers leave before the commit": QUICK,
    "an update that is asked twice is done twice": QUICK,
    "a refused update is recorded": QUICK,
    "a validator is not asked": QUICK,
    "nobody elsewhere is answered": QUICK,
    "whoever waits looks for no answers": QUICK,
    "open updates are not answered when the run ends": QUICK,
    "questions that come while the run ends are dropped": 100,
    "the mail of a start is forgotten": QUICK,
    "a query is answered before the mail that waits": 100,
    "a query that is asked here does not look into the mailbox": 100,
    "a run that nobody owns is asked without its mail": QUICK,
    "a query whose run has left is not asked again": 800,
    "a signal that is sent twice is handled twice": QUICK,
    "signals do not reach their handlers": QUICK,
    "a node that was declared dead answers queries": 2000,
    "replies are kept by the id of the message alone": 400,
    "a refusal is taken for the answer to whoever asks again": 2000,
}


def first_found(name: str, budget: int) -> int | None:
    with planted(name):
        for outcome in run_seeds(range(budget)):
            if outcome.violation is not None:
                return outcome.seed
    return None


def budgets(*, quick: bool) -> list[tuple[str, int]]:
    return [(name, budget) for name, budget in BUDGETS.items() if (budget <= QUICK) is quick]


def test_every_planted_bug_has_a_budget() -> None:
    assert set(BUDGETS) == set(BUGS)
    assert set(BUDGETS.values()) <= set(STEPS)
    assert len(BUGS) >= 20


@pytest.mark.parametrize(("name", "budget"), budgets(quick=True))
def test_a_planted_bug_is_found_within_its_budget(name: str, budget: int) -> None:
    assert first_found(name, budget) is not None, f"{name}: not found in {budget} seeds"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "budget"), budgets(quick=False))
def test_a_rare_planted_bug_is_found_within_its_budget(name: str, budget: int) -> None:
    assert first_found(name, budget) is not None, f"{name}: not found in {budget} seeds"


def test_the_clean_system_passes_the_quick_seeds() -> None:
    assert [(each.seed, each.violation) for each in run_seeds(range(QUICK)) if each.violation] == []


@pytest.mark.slow
def test_the_clean_system_passes_the_seeds_in_which_bugs_were_found() -> None:
    failed = [(each.seed, each.violation) for each in run_seeds(range(CLEAN)) if each.violation]
    assert failed == []
