"""Every SQL statement of the PostgreSQL store, with what it is for. What writes is a function of the schema, told in
`migrations/postgres/0001_first.sql`; here are the calls, and what is only read.
"""

from __future__ import annotations

# --- commits ----------------------------------------------------------------------------------------------------
# Each returns the commits that do not hold, by their place in the arrays. A batch is one call, even if it has both.

_TURN_PARAMETERS = 17
_START_PARAMETERS = 20


def _call(function: str, first: int, count: int) -> str:
    return f"outlast.{function}({', '.join(f'${number}' for number in range(first, first + count))})"


TURNS = f"SELECT true AS turn, place, answer FROM {_call('commit_turns_1', 1, _TURN_PARAMETERS)}"
STARTS = f"SELECT false AS turn, place, answer FROM {_call('start_runs_1', 1, _START_PARAMETERS)}"
# The turns first: a workflow id that a run of this batch gives up is free for one that begins in it.
TURNS_AND_STARTS = (
    f"{TURNS} UNION ALL "
    f"SELECT false AS turn, place, answer FROM {_call('start_runs_1', 1 + _TURN_PARAMETERS, _START_PARAMETERS)}"
)

# --- mail, claims, tasks ----------------------------------------------------------------------------------------

SEND = "SELECT answer, owner, queue FROM outlast.send_mail_1($1, $2, $3, $4, $5, $6)"

CLAIM_RUNS = "SELECT (run).*, error, lost FROM outlast.claim_runs_1($1, $2, $3, $4, $5, $6, $7, $8, $9)"

TAKE_RUN = "SELECT (run).*, error, lost FROM outlast.take_run_1($1, $2)"

CLAIM_TASKS = """
SELECT run_id, activity_id, activity, queue, attempt, body, lost
  FROM outlast.claim_tasks_1($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

DELIVER = "SELECT owner, queue FROM outlast.deliver_1($1, $2, $3, $4, $5, $6, $7)"

BACKLOG = "SELECT outlast.backlog_1($1, $2, $3, $4)"

TASKS_OF = "SELECT run_id, activity_id FROM outlast.tasks WHERE run_id = ANY ($1) ORDER BY run_id, activity_id"

MAIL_OF = (
    "SELECT mail_id, run_id, message_id, at_us, body FROM outlast.mailbox WHERE owner = $1 ORDER BY mail_id LIMIT $2"
)

MAIL_FOR = (
    "SELECT mail_id, run_id, message_id, at_us, body FROM outlast.mailbox WHERE run_id = ANY ($1) ORDER BY mail_id"
)

REPLIES = "SELECT message_id, body FROM outlast.replies WHERE message_id = ANY ($1)"

FORGET_REPLIES = """
WITH old AS (
    SELECT message_id FROM outlast.replies WHERE at_us < $1 ORDER BY at_us, message_id LIMIT $2 FOR UPDATE SKIP LOCKED
), forgotten AS (
    DELETE FROM outlast.replies USING old WHERE replies.message_id = old.message_id RETURNING 1
)
SELECT count(*) FROM forgotten
"""

# --- nodes ------------------------------------------------------------------------------------------------------

JOIN = "SELECT outlast.join_1($1, $2, $3, $4)"

# It is also how a node says which process of the server its session is, whenever that has changed. One that was held
# up must not undo what `REGISTER` said after it was sent.
HEARTBEAT = """
UPDATE outlast.nodes
   SET counter = counter + 1,
       backend_pid = CASE WHEN $3 < backend_start THEN backend_pid ELSE $2 END,
       backend_start = CASE WHEN $3 < backend_start THEN backend_start ELSE $3 END
 WHERE node_id = $1 AND alive
RETURNING node_id
"""

# Sessions are cut and come back: the node is the same, its process of the server is another one.
REGISTER = "UPDATE outlast.nodes SET backend_pid = $2, backend_start = $3 WHERE node_id = ANY ($1) AND alive"

DECLARE_DEAD = "UPDATE outlast.nodes SET alive = false WHERE node_id = $1 AND alive RETURNING node_id"

# `gone`: the session's process has ended, and this server has been running since before that began: after a restart
# every session is new, which says nothing about the nodes. So it is if one process of the server crashes: all others
# end with it, and the statistics begin anew. What another role hides (backend_start) is taken for alive. And whoever
# has any other connection lives: with a process all of them end, and what cuts connections seldom cuts all at once.
NODES = """
SELECT node_id, name, alive, counter, backend_pid, backend_start,
       backend_start IS NOT NULL
       AND backend_start >= greatest(pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_wal))
       AND NOT EXISTS (SELECT 1 FROM pg_stat_get_activity(nodes.backend_pid) AS session
                        WHERE coalesce(session.backend_start, nodes.backend_start) = nodes.backend_start)
       AND NOT EXISTS (SELECT 1 FROM pg_stat_activity AS any_of_its WHERE any_of_its.application_name = nodes.client)
       AS gone
  FROM outlast.nodes
 WHERE alive
    OR EXISTS (SELECT 1 FROM outlast.runs
                WHERE runs.status = 'open' AND runs.owner IS NOT NULL AND runs.owner = nodes.node_id)
    OR EXISTS (SELECT 1 FROM outlast.tasks WHERE tasks.node IS NOT NULL AND tasks.node = nodes.node_id)
 ORDER BY node_id
"""

WHO_AM_I = "SELECT pg_backend_pid() AS pid, backend_start FROM pg_stat_get_activity(pg_backend_pid())"

NOW_US = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

# --- reading ----------------------------------------------------------------------------------------------------

RUN_COLUMNS = (
    "run_id, namespace, workflow_id, workflow, queue, status, owner, next_event, turn_id, wake_at_us, claims, "
    "priority, kind, format, started_at_us, closed_at_us"
)

_RUN = f"""
SELECT {RUN_COLUMNS},
       (SELECT error FROM outlast.run_details
         WHERE run_details.run_id = runs.run_id AND run_details.error_at = runs.next_event) AS error
  FROM outlast.runs
"""

RUN = f"{_RUN} WHERE run_id = $1"

CLOSED_OF = f"{_RUN} WHERE run_id = ANY ($1) AND status <> 'open' ORDER BY run_id"

# Two searches, since each index has only one kind.
FIND = f"""
{_RUN} WHERE run_id = coalesce(
    (SELECT run_id FROM outlast.runs WHERE status = 'open' AND namespace = $1 AND workflow_id = $2),
    (SELECT max(run_id) FROM outlast.runs WHERE status <> 'open' AND namespace = $1 AND workflow_id = $2))
"""


def list_runs(conditions: list[str], order: str, limit: str) -> str:
    return f"{_RUN} WHERE {' AND '.join(conditions)} ORDER BY {order} DESC LIMIT {limit}"


# From the row in which the event is: that with the greatest first_event up to it.
HISTORY = """
SELECT run_id, first_event, count, turn_id, at_us, events
  FROM outlast.journal
 WHERE run_id = $1
   AND first_event >= coalesce(
        (SELECT max(first_event) FROM outlast.journal WHERE run_id = $1 AND first_event <= $2), 0)
   AND first_event + count > $2
 ORDER BY first_event
"""

HISTORIES = """
SELECT run_id, first_event, count, turn_id, at_us, events
  FROM outlast.journal
 WHERE run_id = ANY ($1)
 ORDER BY run_id, first_event
"""

# --- hints ------------------------------------------------------------------------------------------------------
# Not inside of a commit: a transaction with a NOTIFY in it takes a lock that all others of the server wait for.

NOTIFY = "SELECT pg_notify($1, $2)"
