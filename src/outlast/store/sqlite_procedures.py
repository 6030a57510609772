"""What writing does on SQLite: views with triggers, which stand for the stored procedures of other databases.

Theory of operation
===================
Python's sqlite3 gives up the GIL around every step of every statement, and takes it back afterwards; while another
thread runs Python, each such return costs up to the switch interval, 5 ms. So speed is a matter of few statements.
A batch of commits is therefore ONE statement: an INSERT of all its turns into the view `turns`, whose trigger does
for each of them what a stored procedure would do elsewhere. When it stands alone it is its own transaction.

A trigger that finds a turn in the wrong stops the whole statement with RAISE(ABORT, reason), which undoes it;
`sqlite_writer.py` then halves the batch until the losers stand alone. The reasons are the values of `Answer`
and `Sent`. Views and triggers are TEMP: they belong to the connection, and so always to the code that uses it,
whatever release has last migrated the file. Measured for 64 runs with fsync, rows/s alone and beside a thread that
burns Python:

    INSERT into a view with triggers    35,000 - 46,000      8,800
    multi-row UPDATE FROM and INSERT    29,000               2,300
    the same over json_each             26,000               2,300
    executemany, twice                  34,000 - 39,000        200
    a statement per row                 39,000                 130

TEXT costs the same as BLOB, and can be read.

A third view, `turns_with_messages`, has two columns more than `turns`. It is for the few batches in which something is
replied, or started with mail: in `turns`, the columns would cost every commit 2 to 6 %, though they are NULL.
"""

from __future__ import annotations

from functools import cache

from outlast.model.ids import TURN_BITS

# One row per commit. `status` is NULL for a run that goes on, 'open' for a release, else how the run ends.
# The last four are JSON and mostly NULL: mail ids, activity ids, tasks as objects, the columns of a new run.
TURN_COLUMNS = (
    "run_id",
    "owner",
    "next_event",
    "count",
    "turn_id",
    "at_us",
    "events",
    "status",
    "wake_at_us",
    "error",
    "consume",
    "drop_tasks",
    "add_tasks",
    "start",
)

TURNS = f"CREATE TEMP VIEW turns AS SELECT {', '.join(f'NULL AS {column}' for column in TURN_COLUMNS)}"

_ADD_TASKS = """
    INSERT OR REPLACE INTO tasks
           (run_id, activity_id, namespace, activity, queue, attempt, visible_at_us, node, body)
    SELECT NEW.run_id,
           json_extract(task.value, '$.activity_id'),
           (SELECT namespace FROM runs WHERE run_id = NEW.run_id),
           json_extract(task.value, '$.activity'),
           json_extract(task.value, '$.queue'),
           json_extract(task.value, '$.attempt'),
           json_extract(task.value, '$.visible_at_us'),
           NULL,
           json_extract(task.value, '$.body')
      FROM json_each(NEW.add_tasks) AS task
     WHERE NEW.add_tasks IS NOT NULL;
"""

# Owner and next event are as the commit says, and it is no copy that arrives late: the turn ids of a node only grow.
_FENCE = f"""owner = NEW.owner AND next_event = NEW.next_event AND status = 'open'
       AND (NEW.turn_id > turn_id OR NEW.turn_id >> {TURN_BITS} <> turn_id >> {TURN_BITS}
            OR NEW.turn_id IS NULL OR turn_id IS NULL)"""

# Advance, release or close a run. The order: runs, journal, mailbox, tasks.
# Two UPDATEs, because the first one, which nearly all commits take, must name no column of an index.
# Rows that only fill up the statement have no run_id.
ADVANCE = f"""
CREATE TEMP TRIGGER advance INSTEAD OF INSERT ON turns WHEN NEW.start IS NULL AND NEW.run_id IS NOT NULL
BEGIN
    UPDATE runs
       SET next_event = NEW.next_event + NEW.count,
           turn_id = coalesce(NEW.turn_id, turn_id),
           claims = 0
     WHERE run_id = NEW.run_id AND {_FENCE}
       AND NEW.status IS NULL;
    SELECT RAISE(ABORT, 'fenced') WHERE NEW.status IS NULL AND changes() = 0;

    UPDATE runs
       SET next_event = NEW.next_event + NEW.count,
           turn_id = coalesce(NEW.turn_id, turn_id),
           claims = CASE WHEN NEW.error IS NULL OR NEW.count > 0 THEN 0 ELSE claims END,
           owner = NULL,
           wake_at_us = NEW.wake_at_us,
           status = NEW.status,
           closed_at_us = CASE WHEN NEW.status <> 'open' THEN NEW.at_us END
     WHERE run_id = NEW.run_id AND {_FENCE}
       AND NEW.status IS NOT NULL;
    SELECT RAISE(ABORT, 'fenced') WHERE NEW.status IS NOT NULL AND changes() = 0;

    INSERT INTO run_details (run_id, error, error_at)
    SELECT NEW.run_id, NEW.error, NEW.next_event + NEW.count WHERE NEW.error IS NOT NULL
        ON CONFLICT (run_id) DO UPDATE SET error = excluded.error, error_at = excluded.error_at;
    DELETE FROM run_details WHERE NEW.status IS NOT NULL AND NEW.error IS NULL AND run_id = NEW.run_id;

    INSERT INTO journal (run_id, first_event, count, turn_id, at_us, events)
    SELECT NEW.run_id, NEW.next_event, NEW.count, NEW.turn_id, NEW.at_us, NEW.events WHERE NEW.count > 0;

    DELETE FROM mailbox
     WHERE NEW.consume IS NOT NULL
       AND run_id = NEW.run_id AND mail_id IN (SELECT value FROM json_each(NEW.consume));
    SELECT RAISE(ABORT, 'mail waiting')
     WHERE NEW.status IS NOT NULL AND NEW.error IS NULL AND EXISTS (SELECT 1 FROM mailbox WHERE run_id = NEW.run_id);
    UPDATE mailbox SET owner = NULL WHERE NEW.error IS NOT NULL AND run_id = NEW.run_id;

    DELETE FROM tasks
     WHERE NEW.drop_tasks IS NOT NULL
       AND run_id = NEW.run_id AND activity_id IN (SELECT value FROM json_each(NEW.drop_tasks));
    DELETE FROM tasks WHERE NEW.status <> 'open' AND run_id = NEW.run_id;
    {_ADD_TASKS}
END
"""

# Create a run with its first events.
START = f"""
CREATE TEMP TRIGGER start INSTEAD OF INSERT ON turns WHEN NEW.start IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'id in use')
     WHERE EXISTS (SELECT 1 FROM runs WHERE run_id = NEW.run_id)
        OR EXISTS (SELECT 1 FROM runs
                    WHERE status = 'open'
                      AND namespace = json_extract(NEW.start, '$.namespace')
                      AND workflow_id = json_extract(NEW.start, '$.workflow_id'))
        OR json_extract(NEW.start, '$.id_reuse') = 'never'
           AND EXISTS (SELECT 1 FROM runs
                        WHERE status <> 'open'
                          AND namespace = json_extract(NEW.start, '$.namespace')
                          AND workflow_id = json_extract(NEW.start, '$.workflow_id'));

    INSERT INTO runs (run_id, namespace, workflow_id, workflow, queue, status, owner, next_event, turn_id, wake_at_us,
                      claims, priority, kind, format, started_at_us, closed_at_us)
    VALUES (NEW.run_id,
            json_extract(NEW.start, '$.namespace'),
            json_extract(NEW.start, '$.workflow_id'),
            json_extract(NEW.start, '$.workflow'),
            json_extract(NEW.start, '$.queue'),
            coalesce(NEW.status, 'open'),
            CASE WHEN NEW.status IS NULL THEN NEW.owner END,
            1 + NEW.count,
            NEW.turn_id,
            NEW.wake_at_us,
            0,
            json_extract(NEW.start, '$.priority'),
            json_extract(NEW.start, '$.kind'),
            json_extract(NEW.start, '$.format'),
            NEW.at_us,
            CASE WHEN NEW.status IS NOT NULL THEN NEW.at_us END);

    INSERT INTO journal (run_id, first_event, count, turn_id, at_us, events)
    VALUES (NEW.run_id, 1, NEW.count, NEW.turn_id, NEW.at_us, NEW.events);
    {_ADD_TASKS}
END
"""

MESSAGE_COLUMNS = ("mail", "replies")

TURNS_WITH_MESSAGES = f"""
CREATE TEMP VIEW turns_with_messages AS SELECT {", ".join(f"NULL AS {each}" for each in TURN_COLUMNS + MESSAGE_COLUMNS)}
"""

# A turn, and after it the mail that a start brings along, and the replies. Both are JSON: [[message id, body]].
ADVANCE_OR_START_WITH_MESSAGES = f"""
CREATE TEMP TRIGGER with_messages INSTEAD OF INSERT ON turns_with_messages WHEN NEW.run_id IS NOT NULL
BEGIN
    INSERT INTO turns VALUES ({", ".join(f"NEW.{column}" for column in TURN_COLUMNS)});

    INSERT INTO mailbox (run_id, message_id, owner, at_us, body)
    SELECT NEW.run_id, json_extract(message.value, '$[0]'), NEW.owner, NEW.at_us, json_extract(message.value, '$[1]')
      FROM json_each(NEW.mail) AS message
     WHERE NEW.mail IS NOT NULL
     ORDER BY message.key;

    INSERT OR REPLACE INTO replies (message_id, at_us, body)
    SELECT json_extract(reply.value, '$[0]'), NEW.at_us, json_extract(reply.value, '$[1]')
      FROM json_each(NEW.replies) AS reply
     WHERE NEW.replies IS NOT NULL;
END
"""

OUTGOING_COLUMNS = ("run_id", "message_id", "at_us", "body", "beyond_limit")

OUTGOING = f"CREATE TEMP VIEW outgoing AS SELECT {', '.join(f'NULL AS {column}' for column in OUTGOING_COLUMNS)}"

# Put one message into a mailbox. A message id that waits there already is acknowledged again.
SEND = """
CREATE TEMP TRIGGER send INSTEAD OF INSERT ON outgoing WHEN NEW.run_id IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'no such run') WHERE NOT EXISTS (SELECT 1 FROM runs WHERE run_id = NEW.run_id);
    SELECT RAISE(ABORT, 'closed') WHERE EXISTS (SELECT 1 FROM runs WHERE run_id = NEW.run_id AND status <> 'open');
    SELECT RAISE(ABORT, 'full')
     WHERE (SELECT count(*) FROM mailbox WHERE run_id = NEW.run_id) >= {mailbox_limit:d}
       AND NOT NEW.beyond_limit
       AND NOT EXISTS (SELECT 1 FROM mailbox WHERE run_id = NEW.run_id AND message_id = NEW.message_id);

    INSERT INTO mailbox (run_id, message_id, owner, at_us, body)
    SELECT run_id, NEW.message_id, owner, NEW.at_us, NEW.body FROM runs WHERE run_id = NEW.run_id
        ON CONFLICT (run_id, message_id) DO NOTHING;
END
"""

# Mail for a run without owner makes it free to be claimed, unless it is parked.
WAKE = """
CREATE TEMP TRIGGER wake AFTER INSERT ON main.mailbox WHEN NEW.owner IS NULL
BEGIN
    INSERT INTO woken (run_id, namespace, queue, workflow, priority, format, since_us)
    SELECT run_id, namespace, queue, workflow, priority, format, NEW.at_us
      FROM runs
     WHERE run_id = NEW.run_id
       AND NOT EXISTS (SELECT 1 FROM run_details AS parked
                        WHERE parked.run_id = runs.run_id AND parked.error_at = runs.next_event)
        ON CONFLICT (run_id) DO UPDATE SET since_us = min(since_us, excluded.since_us);
END
"""


def procedures(mailbox_limit: int) -> tuple[str, ...]:
    """To be executed once on each connection that writes."""
    turns = (TURNS, ADVANCE, START, TURNS_WITH_MESSAGES, ADVANCE_OR_START_WITH_MESSAGES)
    return (*turns, OUTGOING, SEND.format(mailbox_limit=mailbox_limit), WAKE)


@cache
def insert_turns(rows: int) -> str:
    return _insert("turns", len(TURN_COLUMNS), rows)


@cache
def insert_turns_with_messages(rows: int) -> str:
    return _insert("turns_with_messages", len(TURN_COLUMNS) + len(MESSAGE_COLUMNS), rows)


@cache
def insert_outgoing(rows: int) -> str:
    return _insert("outgoing", len(OUTGOING_COLUMNS), rows)


def _insert(view: str, columns: int, rows: int) -> str:
    row = "(" + ", ".join("?" * columns) + ")"
    return f"INSERT INTO {view} VALUES " + ", ".join([row] * rows)
