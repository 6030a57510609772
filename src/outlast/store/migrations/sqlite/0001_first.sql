-- usable from: 1
-- The first schema. What is read or written where: store/sqlite_sql.py, store/sqlite_procedures.py. Times are
-- microseconds since 1970 (UTC).

-- One row per run, narrow: it is rewritten with every commit. That commit changes next_event, turn_id and claims,
-- so no index may contain these three.
CREATE TABLE runs (
    run_id        TEXT    NOT NULL PRIMARY KEY,
    namespace     TEXT    NOT NULL,
    workflow_id   TEXT    NOT NULL,
    workflow      TEXT    NOT NULL,
    queue         TEXT    NOT NULL,
    status        TEXT    NOT NULL,              -- 'open', or how it ended
    owner         INTEGER,                       -- nodes.node_id; NULL: free to be claimed once it is due or has mail
    next_event    INTEGER NOT NULL,              -- events 1 .. next_event - 1 are in the journal
    turn_id       INTEGER,
    wake_at_us    INTEGER,                       -- counts only while there is no owner
    claims        INTEGER NOT NULL,
    priority      INTEGER NOT NULL,
    kind          TEXT    NOT NULL,
    format        INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    closed_at_us  INTEGER
) WITHOUT ROWID;

-- A run is in exactly one of the first two: while it is open its workflow id is taken.
CREATE UNIQUE INDEX runs_open_id ON runs (namespace, workflow_id) WHERE status = 'open';
CREATE INDEX runs_closed_id ON runs (namespace, workflow_id) WHERE status <> 'open';
-- For claims: the unowned that are due, and those of one owner. `format` only saves a look at the row.
CREATE INDEX runs_claims ON runs (owner, namespace, queue, workflow, priority DESC, wake_at_us, run_id, format)
    WHERE status = 'open';

-- Columns that few runs have. `error` counts while error_at = runs.next_event: a commit that appends events
-- thereby clears it, without a write here.
CREATE TABLE run_details (
    run_id   TEXT    NOT NULL PRIMARY KEY,
    error    TEXT    NOT NULL,
    error_at INTEGER NOT NULL
) WITHOUT ROWID;

-- The histories, one row per turn, in the order in which they were committed: appending to one end of the file is
-- 2.5 times faster than a table clustered by run.
CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY,
    run_id      TEXT    NOT NULL,
    first_event INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    turn_id     INTEGER,
    at_us       INTEGER NOT NULL,
    events      TEXT    NOT NULL                 -- a JSON array
);
-- How a history is read; and the backstop of the fence.
CREATE UNIQUE INDEX journal_run ON journal (run_id, first_event);

-- Messages that wait. `owner` is always that of the open run, so that a node finds its mail without a look at `runs`.
CREATE TABLE mailbox (
    mail_id    INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id     TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    owner      INTEGER,
    at_us      INTEGER NOT NULL,
    body       TEXT    NOT NULL                  -- JSON
);
CREATE UNIQUE INDEX mailbox_run ON mailbox (run_id, message_id);
CREATE INDEX mailbox_owner ON mailbox (owner) WHERE owner IS NOT NULL;

-- Runs that mail has made free to be claimed: open, without owner, not parked. With what a claim asks for, and since
-- when, so that claims need not look through the mail.
CREATE TABLE woken (
    run_id    TEXT    NOT NULL PRIMARY KEY,
    namespace TEXT    NOT NULL,
    queue     TEXT    NOT NULL,
    workflow  TEXT    NOT NULL,
    priority  INTEGER NOT NULL,
    format    INTEGER NOT NULL,
    since_us  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX woken_claims ON woken (namespace, queue, workflow, priority DESC, since_us, run_id, format);

-- Dispatched attempts of activities.
CREATE TABLE tasks (
    run_id        TEXT    NOT NULL,
    activity_id   TEXT    NOT NULL,
    namespace     TEXT    NOT NULL,
    activity      TEXT    NOT NULL,
    queue         TEXT    NOT NULL,
    attempt       INTEGER NOT NULL,
    visible_at_us INTEGER NOT NULL,
    node          INTEGER,                       -- who claimed the attempt
    lost          INTEGER NOT NULL DEFAULT 0,    -- another node had claimed it before, and died
    body          TEXT    NOT NULL,              -- JSON
    PRIMARY KEY (run_id, activity_id)
) WITHOUT ROWID;
CREATE INDEX tasks_claims ON tasks (node, namespace, queue, visible_at_us);

-- Answers to messages. Kept until they are too old to be waited for: a small table.
CREATE TABLE replies (
    message_id TEXT    NOT NULL PRIMARY KEY,
    at_us      INTEGER NOT NULL,
    body       TEXT    NOT NULL                  -- JSON
) WITHOUT ROWID;
CREATE INDEX replies_age ON replies (at_us);

-- The processes that have the store open. AUTOINCREMENT, because an id must never come back.
CREATE TABLE nodes (
    node_id   INTEGER PRIMARY KEY AUTOINCREMENT,
    name      TEXT    NOT NULL,
    alive     INTEGER NOT NULL,
    counter   INTEGER NOT NULL,
    lock_file INTEGER                            -- inode of the file whose byte it holds locked; NULL: it holds none
);

-- For people: one line per event.
CREATE VIEW history AS
    SELECT journal.run_id,
           journal.first_event + event.key AS position,
           json_extract(event.value, '$.type') AS type,
           strftime('%Y-%m-%d %H:%M:%f', journal.at_us / 1e6, 'unixepoch') AS at,
           event.value AS event
    FROM journal, json_each(journal.events) AS event;
