"""The SQL statements of the SQLite store, but for those that write turns and mail (`sqlite_procedures.py`), each with
what it is for. Tables: `migrations/sqlite/0001_first.sql`.

A SELECT takes one step per row, and each step may cost a wait for the interpreter's lock (figures:
`sqlite_procedures.py`). So what may have many rows comes back as one JSON array.
"""

from __future__ import annotations

from functools import cache


def _gathered(columns: str, select: str) -> str:
    """All rows of `select` as one: a JSON array of arrays, or of what `columns` makes of a row."""
    return f"SELECT json_group_array({columns}) FROM ({select})"


@cache
def finds_any(selects: tuple[str, ...]) -> str:
    """ "1" if one of these gathered SELECTs finds something, else "0". It stops at the first that does."""
    finds = " OR ".join(f"({select}) <> '[]'" for select in selects)
    return f"SELECT CAST({finds} AS TEXT)"


# --- nodes ------------------------------------------------------------------------------------------------------

JOIN = "INSERT INTO nodes (name, alive, counter) VALUES (?, 1, 0)"

# The inode of the lock file in which the node holds its byte.
SET_LOCK_FILE = "UPDATE nodes SET lock_file = ? WHERE node_id = ?"

# The dead that nothing refers to any more: nobody will ask for them again.
FORGET_DEAD_NODES = """
DELETE FROM nodes
 WHERE NOT alive
   AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.status = 'open' AND runs.owner = nodes.node_id)
   AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.node = nodes.node_id)
"""

HEARTBEAT = "UPDATE nodes SET counter = counter + 1 WHERE node_id = ? AND alive"

DECLARE_DEAD = "UPDATE nodes SET alive = 0 WHERE node_id = ? AND alive"

IS_ALIVE = "SELECT 1 FROM nodes WHERE node_id = ? AND alive"

NODES = _gathered(
    "json_array(node_id, name, alive, counter, lock_file)",
    """
SELECT node_id, name, alive, counter, lock_file
  FROM nodes
 WHERE alive
    OR EXISTS (SELECT 1 FROM runs WHERE runs.status = 'open' AND runs.owner = nodes.node_id)
    OR EXISTS (SELECT 1 FROM tasks WHERE tasks.node = nodes.node_id)
 ORDER BY node_id
""",
)

# --- claims of runs ---------------------------------------------------------------------------------------------
# Candidates come as (run_id, priority, due_us, owner), the best `limit` of each kind; `sqlite_claims.py` merges them.
# Nothing here may take longer because many runs sleep, are due, or are hosted elsewhere: so of each queue and
# workflow only the first `limit` are read, in the order of an index.

_CANDIDATE = "json_array(run_id, priority, due_us, owner)"

_HOSTED = """
    hosted (queue, workflow) AS (
        SELECT queues.value, workflows.value FROM json_each(:queues) AS queues, json_each(:workflows) AS workflows
    )"""

# Owners that are not alive, or of whom there is no row any more; found by jumping through the index.
_DEAD_OWNERS = """
    owners (owner) AS (
        SELECT (SELECT min(owner) FROM runs WHERE status = 'open' AND owner IS NOT NULL)
        UNION ALL
        SELECT (SELECT min(runs.owner) FROM runs WHERE runs.status = 'open' AND runs.owner > owners.owner)
          FROM owners WHERE owners.owner IS NOT NULL
    ),
    dead (owner) AS (
        SELECT owner FROM owners WHERE owner IS NOT NULL EXCEPT SELECT node_id FROM nodes WHERE alive
    )"""

# Those that were claimed and came to nothing since are suspects, and not among them.
LOST_RUNS = _gathered(
    _CANDIDATE,
    f"""
WITH RECURSIVE {_HOSTED}, {_DEAD_OWNERS}
SELECT runs.run_id, runs.priority, coalesce(runs.wake_at_us, 0) AS due_us, runs.owner
  FROM dead CROSS JOIN hosted CROSS JOIN runs
    ON runs.run_id IN (
        SELECT run.run_id FROM runs AS run
         WHERE run.status = 'open' AND run.owner = dead.owner AND run.namespace = :namespace
           AND run.queue = hosted.queue AND run.workflow = hosted.workflow AND run.format <= :max_format
           AND run.claims = 0
         ORDER BY run.priority DESC, run.wake_at_us, run.run_id LIMIT :limit)
 ORDER BY runs.priority DESC, due_us, runs.run_id
 LIMIT :limit
""",
)

# Few: what a dead node was just loading. All of them are looked at, to find the one with the fewest claims.
SUSPECT_RUN = _gathered(
    _CANDIDATE,
    f"""
WITH RECURSIVE {_HOSTED}, {_DEAD_OWNERS}
SELECT runs.run_id, runs.priority, coalesce(runs.wake_at_us, 0) AS due_us, runs.owner
  FROM dead CROSS JOIN hosted CROSS JOIN runs
    ON runs.status = 'open' AND runs.owner = dead.owner AND runs.namespace = :namespace
   AND runs.queue = hosted.queue AND runs.workflow = hosted.workflow AND runs.format <= :max_format
 WHERE runs.claims > 0
 ORDER BY runs.claims, runs.priority DESC, due_us, runs.run_id
 LIMIT min(:limit, 1)
""",
)

# In front of those that are due may be any number that sleep, of each priority; the priorities are found by jumping.
DUE_RUNS = _gathered(
    _CANDIDATE,
    f"""
WITH RECURSIVE {_HOSTED},
    levels (queue, workflow, priority) AS (
        SELECT hosted.queue, hosted.workflow,
               (SELECT max(priority) FROM runs
                 WHERE status = 'open' AND owner IS NULL AND namespace = :namespace
                   AND queue = hosted.queue AND workflow = hosted.workflow)
          FROM hosted
        UNION ALL
        SELECT levels.queue, levels.workflow,
               (SELECT max(runs.priority) FROM runs
                 WHERE runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = :namespace
                   AND runs.queue = levels.queue AND runs.workflow = levels.workflow
                   AND runs.priority < levels.priority)
          FROM levels WHERE levels.priority IS NOT NULL
    )
SELECT runs.run_id, runs.priority, runs.wake_at_us AS due_us, runs.owner
  FROM levels CROSS JOIN runs
    ON runs.run_id IN (
        SELECT run.run_id FROM runs AS run
         WHERE run.status = 'open' AND run.owner IS NULL AND run.namespace = :namespace
           AND run.queue = levels.queue AND run.workflow = levels.workflow AND run.priority = levels.priority
           AND run.wake_at_us <= :now_us AND run.format <= :max_format
         ORDER BY run.wake_at_us, run.run_id LIMIT :limit)
 ORDER BY runs.priority DESC, runs.wake_at_us, runs.run_id
 LIMIT :limit
""",
)

WOKEN_RUNS = _gathered(
    _CANDIDATE,
    f"""
WITH {_HOSTED}
SELECT woken.run_id, woken.priority, woken.since_us AS due_us, NULL AS owner
  FROM hosted CROSS JOIN woken
    ON woken.run_id IN (
        SELECT run.run_id FROM woken AS run
         WHERE run.namespace = :namespace AND run.queue = hosted.queue AND run.workflow = hosted.workflow
           AND run.format <= :max_format
         ORDER BY run.priority DESC, run.since_us, run.run_id LIMIT :limit)
 ORDER BY woken.priority DESC, woken.since_us, woken.run_id
 LIMIT :limit
""",
)

# Few, and asked for rarely: when the code has changed.
PARKED_RUNS = _gathered(
    _CANDIDATE,
    """
SELECT runs.run_id, runs.priority, :now_us AS due_us, runs.owner
  FROM run_details CROSS JOIN runs ON runs.run_id = run_details.run_id
 WHERE run_details.error_at = runs.next_event
   AND runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = :namespace
   AND runs.queue IN (SELECT value FROM json_each(:queues))
   AND runs.workflow IN (SELECT value FROM json_each(:workflows)) AND runs.format <= :max_format
 ORDER BY runs.priority DESC, runs.run_id
 LIMIT :limit
""",
)

TAKE_RUNS = """
UPDATE runs SET owner = :node, claims = claims + 1 WHERE run_id IN (SELECT value FROM json_each(:run_ids))
"""

# One run, whether it is due or not: its owner until now, if that is not alive.
FREE_RUN = """
SELECT owner FROM runs
 WHERE run_id = ? AND status = 'open' AND (owner IS NULL OR owner NOT IN (SELECT node_id FROM nodes WHERE alive))
"""

# Mail is stamped with the owner of its run.
FORGET_WOKEN = "DELETE FROM woken WHERE run_id IN (SELECT value FROM json_each(:run_ids))"
TAKE_MAIL = "UPDATE mailbox SET owner = :node WHERE run_id IN (SELECT value FROM json_each(:run_ids))"

# --- tasks ------------------------------------------------------------------------------------------------------

TASKS_OF = _gathered(
    "json_array(run_id, activity_id)",
    "SELECT * FROM tasks WHERE run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id, activity_id",
)

# Candidates come as the fields of `Task`: first those nobody claimed ...
_TASK = "json_array(run_id, activity_id, activity, queue, attempt, body, lost)"

FREE_TASKS = _gathered(
    _TASK,
    """
SELECT *
  FROM tasks
 WHERE node IS NULL AND namespace = :namespace AND queue IN (SELECT value FROM json_each(:queues))
   AND visible_at_us <= :now_us AND activity IN (SELECT value FROM json_each(:activities))
 ORDER BY visible_at_us, run_id, activity_id
 LIMIT :limit
""",
)

# ... those that the claimer itself has, and does not know of ...
OWN_TASKS = _gathered(
    _TASK,
    """
SELECT *
  FROM tasks
 WHERE node = :node AND namespace = :namespace AND queue IN (SELECT value FROM json_each(:queues))
   AND visible_at_us <= :now_us AND activity IN (SELECT value FROM json_each(:activities))
   AND (run_id, activity_id, attempt) NOT IN (
       SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
         FROM json_each(:held))
 ORDER BY visible_at_us, run_id, activity_id
 LIMIT :limit
""",
)

# ... and those whose claimer is not alive.
LOST_TASKS = _gathered(
    "json_array(run_id, activity_id, activity, queue, attempt, body, 1)",
    """
WITH RECURSIVE claimers (node) AS (
    SELECT (SELECT min(node) FROM tasks WHERE node IS NOT NULL)
    UNION ALL
    SELECT (SELECT min(tasks.node) FROM tasks WHERE tasks.node > claimers.node)
      FROM claimers WHERE claimers.node IS NOT NULL
)
SELECT *
  FROM tasks
 WHERE node IN (SELECT node FROM claimers WHERE node IS NOT NULL EXCEPT SELECT node_id FROM nodes WHERE alive)
   AND namespace = :namespace AND queue IN (SELECT value FROM json_each(:queues))
   AND visible_at_us <= :now_us AND activity IN (SELECT value FROM json_each(:activities))
 ORDER BY visible_at_us, run_id, activity_id
 LIMIT :limit
""",
)

TAKE_TASK = "UPDATE tasks SET node = ?, lost = ? WHERE run_id = ? AND activity_id = ?"

REMOVE_TASK = "DELETE FROM tasks WHERE run_id = ? AND activity_id = ? AND attempt = ? AND node = ?"

# The outcome of a task. No look at the limit of the mailbox: it has no sender who could try again later, and there
# are never more of them than tasks.
DELIVER = """
INSERT INTO mailbox (run_id, message_id, owner, at_us, body)
SELECT run_id, :message_id, owner, :at_us, :body FROM runs WHERE run_id = :run_id
    ON CONFLICT (run_id, message_id) DO NOTHING
"""

# Like DUE_RUNS, it jumps to each workflow and priority, so as not to count through those that sleep.
BACKLOG = """
WITH RECURSIVE
    workflows (workflow) AS (
        SELECT (SELECT min(workflow) FROM runs
                 WHERE status = 'open' AND owner IS NULL AND namespace = :namespace AND queue = :queue)
        UNION ALL
        SELECT (SELECT min(runs.workflow) FROM runs
                 WHERE runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = :namespace
                   AND runs.queue = :queue AND runs.workflow > workflows.workflow)
          FROM workflows WHERE workflows.workflow IS NOT NULL
    ),
    levels (workflow, priority) AS (
        SELECT workflow,
               (SELECT max(priority) FROM runs
                 WHERE status = 'open' AND owner IS NULL AND namespace = :namespace
                   AND queue = :queue AND runs.workflow = workflows.workflow)
          FROM workflows WHERE workflow IS NOT NULL
        UNION ALL
        SELECT workflow,
               (SELECT max(runs.priority) FROM runs
                 WHERE runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = :namespace
                   AND runs.queue = :queue AND runs.workflow = levels.workflow AND runs.priority < levels.priority)
          FROM levels WHERE levels.priority IS NOT NULL
    )
SELECT CAST(count(*) AS TEXT) FROM (
    SELECT 1
      FROM levels CROSS JOIN runs
        ON runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = :namespace AND runs.queue = :queue
       AND runs.workflow = levels.workflow AND runs.priority = levels.priority AND runs.wake_at_us <= :now_us
     LIMIT :limit)
"""

# --- reading ----------------------------------------------------------------------------------------------------

_RUN = """json_object(
    'run_id', run_id, 'namespace', namespace, 'workflow_id', workflow_id, 'workflow', workflow, 'queue', queue,
    'status', status, 'owner', owner, 'next_event', next_event, 'turn_id', turn_id, 'wake_at_us', wake_at_us,
    'claims', claims, 'priority', priority, 'kind', kind, 'format', format,
    'started_at_us', started_at_us, 'closed_at_us', closed_at_us,
    'error', (SELECT error FROM run_details WHERE run_details.run_id = found.run_id AND error_at = next_event))"""


def _gathered_runs(condition: str) -> str:
    return f"SELECT json_group_array({_RUN}) FROM (SELECT * FROM runs WHERE {condition}) AS found"


RUN = _gathered_runs("run_id = ?")
RUNS_BY_ID = _gathered_runs("run_id IN (SELECT value FROM json_each(:run_ids))")
CLOSED_OF = _gathered_runs("status <> 'open' AND run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id")
# Two searches, since each index has only one kind.
FIND = _gathered_runs(
    "run_id = coalesce("
    "(SELECT run_id FROM runs WHERE status = 'open' AND namespace = :namespace AND workflow_id = :workflow_id), "
    "(SELECT max(run_id) FROM runs WHERE status <> 'open' AND namespace = :namespace AND workflow_id = :workflow_id))"
)

# Conditions of a listing; literals where an index is partial.
FILTER_NAMESPACE = "namespace = :namespace"
FILTER_WORKFLOW_ID = "workflow_id = :workflow_id"
FILTER_WORKFLOW = "workflow = :workflow"
FILTER_OPEN = "status = 'open'"
FILTER_CLOSED_AS = "status <> 'open' AND status = :status"
FILTER_OWNER = "owner = :owner"
FILTER_BEFORE = "run_id < :before"


def list_runs(conditions: list[str]) -> str:
    # The inner SELECT often needs only an index, and sorts only ids.
    chosen = f"SELECT run_id FROM runs WHERE {' AND '.join(conditions)} ORDER BY run_id DESC LIMIT :limit"
    return _gathered_runs(f"run_id IN ({chosen}) ORDER BY run_id DESC")


_JOURNAL_ROW = "json_array(run_id, first_event, count, turn_id, at_us, events)"

# From the row in which the event is: that with the greatest first_event up to it.
HISTORY = _gathered(
    _JOURNAL_ROW,
    """
SELECT *
  FROM journal
 WHERE run_id = :run_id
   AND first_event >= coalesce(
        (SELECT max(first_event) FROM journal WHERE run_id = :run_id AND first_event <= :from_event), 0)
   AND first_event + count > :from_event
 ORDER BY first_event
""",
)

HISTORIES = _gathered(
    _JOURNAL_ROW,
    """
SELECT *
  FROM journal
 WHERE run_id IN (SELECT value FROM json_each(?))
 ORDER BY run_id, first_event
""",
)

_MAIL = "json_array(mail_id, run_id, message_id, at_us, body)"

MAIL_OF = _gathered(_MAIL, "SELECT * FROM mailbox WHERE owner = ? ORDER BY mail_id LIMIT ?")

MAIL_FOR = _gathered(_MAIL, "SELECT * FROM mailbox WHERE run_id IN (SELECT value FROM json_each(?)) ORDER BY mail_id")

# --- replies ----------------------------------------------------------------------------------------------------

REPLIES = _gathered(
    "json_array(message_id, body)", "SELECT * FROM replies WHERE message_id IN (SELECT value FROM json_each(?))"
)

FORGET_REPLIES = """
DELETE FROM replies
 WHERE message_id IN (SELECT message_id FROM replies WHERE at_us < ? ORDER BY at_us, message_id LIMIT ?)
"""
