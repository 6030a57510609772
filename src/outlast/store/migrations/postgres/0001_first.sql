-- usable from: 1
-- The first schema on PostgreSQL. What is called where: store/postgres_sql.py. Times are microseconds since 1970 (UTC).
-- Texts are compared byte by byte (COLLATE "C"), as in the other stores.
--
-- Everything that is written is written by one call of one of the functions below, which is its own transaction: no
-- transaction is ever open while a client does something else, so a client that stops or dies holds no lock.
-- In a function each statement sees what was committed before that statement began: "lock, then look" is two
-- statements. All functions take locks in one order: runs, nodes, journal, mailbox, woken, tasks, replies; and runs by
-- run_id, replies by message_id.
--
-- A function's number is part of its name: a release that needs another one adds it, and the old one stays for the
-- release before.

-- One row per run. A commit rewrites it in place (HOT): it changes next_event and turn_id, which no index may contain;
-- half of each page is free for that. Measured over 150,000 runs of three commits: with 50 all that can be HOT is, with
-- 70 half of it, and then the table grows larger, not smaller. What changes stands in front, so that the log gets only
-- the difference. The commit that ends a run takes it out of the indexes for open runs.
CREATE TABLE outlast.runs (
    next_event    integer NOT NULL,              -- events 1 .. next_event - 1 are in the journal
    claims        integer NOT NULL,
    turn_id       bigint,
    owner         bigint,                        -- nodes.node_id; NULL: free to be claimed once it is due or has mail
    wake_at_us    bigint,                        -- counts only while there is no owner
    started_at_us bigint  NOT NULL,
    closed_at_us  bigint,
    priority      bigint  NOT NULL,
    format        integer NOT NULL,
    status        text COLLATE "C" NOT NULL,     -- 'open', or how it ended
    run_id        text COLLATE "C" NOT NULL PRIMARY KEY,
    namespace     text COLLATE "C" NOT NULL,
    workflow_id   text COLLATE "C" NOT NULL,
    workflow      text COLLATE "C" NOT NULL,
    queue         text COLLATE "C" NOT NULL,
    kind          text COLLATE "C" NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05,
        autovacuum_vacuum_cost_limit = 2000);

-- A run is in exactly one of the first two: while it is open its workflow id is taken.
CREATE UNIQUE INDEX runs_open_id ON outlast.runs (namespace, workflow_id) WHERE status = 'open';
CREATE INDEX runs_closed_id ON outlast.runs (namespace, workflow_id) WHERE status <> 'open';
-- For claims: those of one owner, those of them that have committed nothing since they were claimed, and the unowned in
-- the order in which they are due. `claims` is 0 before and after nearly every commit, which is why it may be here.
CREATE INDEX runs_owned ON outlast.runs (owner, priority DESC, wake_at_us NULLS FIRST, run_id)
    WHERE status = 'open' AND owner IS NOT NULL;
CREATE INDEX runs_claimed ON outlast.runs (owner, claims, priority DESC, wake_at_us NULLS FIRST, run_id)
    WHERE status = 'open' AND owner IS NOT NULL AND claims > 0;
CREATE INDEX runs_due ON outlast.runs (namespace, queue, workflow, priority, wake_at_us, run_id)
    WHERE status = 'open' AND owner IS NULL;

-- Columns that few runs have. `error` counts while error_at = runs.next_event: a commit that appends events
-- thereby clears it, without a write here.
CREATE TABLE outlast.run_details (
    run_id   text COLLATE "C" NOT NULL PRIMARY KEY,
    error    text    NOT NULL,
    error_at integer NOT NULL
);

-- The histories, one row per turn. Only ever appended to. The key is how a history is read, and the backstop of the
-- fence.
CREATE TABLE outlast.journal (
    run_id      text COLLATE "C" NOT NULL,
    first_event integer NOT NULL,
    count       integer NOT NULL,
    turn_id     bigint,
    at_us       bigint  NOT NULL,
    events      text    NOT NULL,                -- a JSON array
    PRIMARY KEY (run_id, first_event)
);

-- Messages that wait. `owner` is always that of the open run, so that a node finds its mail without a look at `runs`.
CREATE TABLE outlast.mailbox (
    mail_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id     text COLLATE "C" NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    owner      bigint,
    at_us      bigint NOT NULL,
    body       text   NOT NULL,                  -- JSON
    CONSTRAINT mailbox_run UNIQUE (run_id, message_id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX mailbox_owner ON outlast.mailbox (owner, mail_id) WHERE owner IS NOT NULL;

-- Runs that mail has made free to be claimed: open, without owner, not parked. With what a claim asks for, and since
-- when, so that claims need not look through the mail.
CREATE TABLE outlast.woken (
    run_id    text COLLATE "C" NOT NULL PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    queue     text COLLATE "C" NOT NULL,
    workflow  text COLLATE "C" NOT NULL,
    priority  bigint  NOT NULL,
    format    integer NOT NULL,
    since_us  bigint  NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX woken_claims ON outlast.woken (namespace, queue, workflow, priority DESC, since_us, run_id);

-- Dispatched attempts of activities.
CREATE TABLE outlast.tasks (
    run_id        text COLLATE "C" NOT NULL,
    activity_id   text COLLATE "C" NOT NULL,
    namespace     text COLLATE "C" NOT NULL,
    activity      text COLLATE "C" NOT NULL,
    queue         text COLLATE "C" NOT NULL,
    attempt       integer NOT NULL,
    visible_at_us bigint  NOT NULL,
    node          bigint,                        -- who claimed the attempt
    lost          boolean NOT NULL DEFAULT false, -- another node had claimed it before, and died
    body          text    NOT NULL,              -- JSON
    PRIMARY KEY (run_id, activity_id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX tasks_free ON outlast.tasks (namespace, queue, visible_at_us) WHERE node IS NULL;
CREATE INDEX tasks_claimed ON outlast.tasks (node) WHERE node IS NOT NULL;

-- Answers to messages. Kept until they are too old to be waited for: a small table.
CREATE TABLE outlast.replies (
    message_id text COLLATE "C" NOT NULL PRIMARY KEY,
    at_us      bigint NOT NULL,
    body       text   NOT NULL                   -- JSON
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX replies_age ON outlast.replies (at_us);

-- The processes that have the store open. An id never comes back.
CREATE TABLE outlast.nodes (
    node_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text    NOT NULL,
    client        text    NOT NULL,              -- application_name of all its connections, and of nobody else's
    alive         boolean NOT NULL,
    counter       bigint  NOT NULL,
    backend_pid   integer,                       -- the server's process for its session; NULL: behind a pooler
    backend_start timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);

-- For people: one line per event.
CREATE VIEW outlast.history AS
    SELECT journal.run_id,
           journal.first_event + event.place - 1 AS position,
           event.value ->> 'type' AS type,
           to_timestamp(journal.at_us / 1e6) AS at,
           event.value AS event
      FROM outlast.journal, jsonb_array_elements(journal.events::jsonb) WITH ORDINALITY AS event (value, place);

-- --- commits ---------------------------------------------------------------------------------------------------
-- A plan is made once and kept, so it must not depend on how small a table was on the day it was made: every access is
-- by an index, a row at a time. The settings of the sessions see to that (store/postgres_connection.py). A row of `runs`
-- is found by its key alone: `texteq` is `=`, but hides the condition of the partial indexes, which the planner would
-- rather scan from end to end while they are small.

-- Change the tasks of those runs of a batch whose commits hold.
-- changes: [{"run_id", "drop": [activity_id], "add": [{"activity_id", "activity", "queue", "attempt", ...}]}]
CREATE FUNCTION outlast.write_tasks_1(won text[], changes jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM outlast.tasks
     USING jsonb_to_recordset(changes) AS change (run_id text, drop jsonb),
           jsonb_array_elements_text(change.drop) AS dropped (activity_id)
     WHERE tasks.run_id = change.run_id AND tasks.activity_id = dropped.activity_id AND change.run_id = ANY (won);

    INSERT INTO outlast.tasks (run_id, activity_id, namespace, activity, queue, attempt, visible_at_us, node, body)
    SELECT change.run_id, added.activity_id, runs.namespace, added.activity, added.queue, added.attempt,
           added.visible_at_us, NULL, added.body
      FROM jsonb_to_recordset(changes) AS change (run_id text, add jsonb)
      JOIN outlast.runs ON runs.run_id = change.run_id,
           jsonb_to_recordset(change.add)
               AS added (activity_id text, activity text, queue text, attempt integer, visible_at_us bigint, body text)
     WHERE change.run_id = ANY (won)
        ON CONFLICT (run_id, activity_id) DO UPDATE
       SET activity = excluded.activity, queue = excluded.queue, attempt = excluded.attempt,
           visible_at_us = excluded.visible_at_us, node = NULL, lost = false, body = excluded.body;
END $$;

-- Whether a turn is not a copy that arrives late: the turn ids of one node only grow.
CREATE FUNCTION outlast.is_newer_1(turn_id bigint, written bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT turn_id > written OR turn_id >> 40 <> written >> 40 OR turn_id IS NULL OR written IS NULL
$$;

-- Write the replies of those runs of a batch whose commits hold: one element per reply. Should two runs reply to one
-- message, one reply is kept.
CREATE FUNCTION outlast.write_replies_1(
    won text[], replied_by text[], replied_to text[], replied_at bigint[], replies text[]
) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO outlast.replies (message_id, at_us, body)
    SELECT DISTINCT ON (reply.message_id) reply.message_id, reply.at_us, reply.body
      FROM unnest(replied_by, replied_to, replied_at, replies)
           WITH ORDINALITY AS reply (run_id, message_id, at_us, body, place)
     WHERE reply.run_id = ANY (won)
     ORDER BY reply.message_id, reply.place DESC
        ON CONFLICT (message_id) DO UPDATE SET at_us = excluded.at_us, body = excluded.body
$$;

-- Advance, release or close runs. One element per commit in each array; `status` is NULL for a run that goes on,
-- 'open' for a release, else how the run ends; statuses, wakes, errors are NULL if no run of the batch leaves.
-- `consumed`: mail ids; replies as for `write_replies_1`; NULL if there are none. Returns the commits that do not hold; of those nothing is written.
-- FOR UPDATE and not what UPDATE takes: a sender that looks at a run (FOR KEY SHARE) is in nobody's way, except of a
-- run that leaves its owner. Skipped if a sender has it at this moment: then mail is about to be there.
CREATE FUNCTION outlast.commit_turns_1(
    run_ids text[], owners bigint[], next_events integer[], counts integer[], turn_ids bigint[], at_us bigint[],
    events text[], statuses text[], wakes bigint[], errors text[], consumed_by text[], consumed bigint[],
    task_changes jsonb, replied_by text[], replied_to text[], replied_at bigint[], replies text[]
) RETURNS TABLE (place integer, answer text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked  bigint[] := '{}';
    waiting bigint[] := '{}';
    taken   bigint[];
    won     text[];
    ended   text[];
BEGIN
    IF statuses IS NOT NULL THEN
        SELECT coalesce(array_agg(leaving.place), '{}') INTO locked
          FROM (SELECT turn.place
                  FROM unnest(run_ids, owners, next_events, turn_ids, statuses)
                       WITH ORDINALITY AS turn (run_id, owner, next_event, turn_id, status, place)
                  JOIN outlast.runs ON runs.run_id = turn.run_id
                 WHERE turn.status IS NOT NULL AND runs.owner = turn.owner AND runs.next_event = turn.next_event
                   AND texteq(runs.status, 'open') AND outlast.is_newer_1(turn.turn_id, runs.turn_id)
                 ORDER BY turn.run_id
                   FOR UPDATE OF runs SKIP LOCKED) AS leaving;

        SELECT coalesce(array_agg(turn.place), '{}') INTO waiting
          FROM unnest(run_ids, errors) WITH ORDINALITY AS turn (run_id, error, place)
         WHERE turn.place = ANY (locked) AND turn.error IS NULL
           AND EXISTS (SELECT 1 FROM outlast.mailbox
                        WHERE mailbox.run_id = turn.run_id AND mailbox.mail_id <> ALL (coalesce(consumed, '{}')));
    END IF;

    WITH advanced AS (
        UPDATE outlast.runs
           SET next_event   = turn.next_event + turn.count,
               turn_id      = coalesce(turn.turn_id, runs.turn_id),
               claims       = CASE WHEN turn.error IS NULL OR turn.count > 0 THEN 0 ELSE runs.claims END,
               owner        = CASE WHEN turn.status IS NULL THEN runs.owner END,
               wake_at_us   = CASE WHEN turn.status IS NULL THEN runs.wake_at_us ELSE turn.wake_at_us END,
               status       = coalesce(turn.status, runs.status),
               closed_at_us = CASE WHEN turn.status <> 'open' THEN turn.at_us ELSE runs.closed_at_us END
          FROM unnest(run_ids, owners, next_events, counts, turn_ids, at_us, events, statuses, wakes, errors)
               WITH ORDINALITY AS turn (run_id, owner, next_event, count, turn_id, at_us, events, status, wake_at_us,
                                        error, place)
         WHERE runs.run_id = turn.run_id AND runs.owner = turn.owner AND runs.next_event = turn.next_event
           AND texteq(runs.status, 'open') AND outlast.is_newer_1(turn.turn_id, runs.turn_id)
           AND (turn.status IS NULL OR turn.place = ANY (locked) AND turn.place <> ALL (waiting))
     RETURNING turn.place, turn.run_id, turn.next_event, turn.count, turn.turn_id, turn.at_us, turn.events, turn.status
    ), written AS (
        INSERT INTO outlast.journal (run_id, first_event, count, turn_id, at_us, events)
        SELECT run_id, next_event, count, turn_id, at_us, events FROM advanced WHERE count > 0
    )
    SELECT array_agg(advanced.place), array_agg(advanced.run_id),
           array_agg(advanced.run_id) FILTER (WHERE advanced.status <> 'open')
      INTO taken, won, ended
      FROM advanced;

    IF won IS NOT NULL AND consumed IS NOT NULL THEN
        DELETE FROM outlast.mailbox
         USING unnest(consumed_by, consumed) AS used (run_id, mail_id)
         WHERE mailbox.mail_id = used.mail_id AND mailbox.run_id = used.run_id AND used.run_id = ANY (won);
    END IF;
    IF won IS NOT NULL AND statuses IS NOT NULL THEN
        PERFORM outlast.after_leaving_1(run_ids, next_events, counts, statuses, errors, taken);
        IF ended IS NOT NULL THEN
            DELETE FROM outlast.tasks WHERE tasks.run_id = ANY (ended);
        END IF;
    END IF;
    IF won IS NOT NULL AND task_changes IS NOT NULL THEN
        PERFORM outlast.write_tasks_1(won, task_changes);
    END IF;
    IF won IS NOT NULL AND replies IS NOT NULL THEN
        PERFORM outlast.write_replies_1(won, replied_by, replied_to, replied_at, replies);
    END IF;

    IF taken IS NULL OR cardinality(taken) < cardinality(run_ids) THEN
        RETURN QUERY
        SELECT turn.place::integer,
               CASE WHEN turn.place = ANY (waiting) THEN 'mail waiting'
                    WHEN turn.status IS NOT NULL AND turn.place <> ALL (locked)
                         AND EXISTS (SELECT 1 FROM outlast.runs
                                      WHERE runs.run_id = turn.run_id AND runs.owner = turn.owner
                                        AND runs.next_event = turn.next_event AND texteq(runs.status, 'open')
                                        AND outlast.is_newer_1(turn.turn_id, runs.turn_id))
                    THEN 'mail waiting'
                    ELSE 'fenced' END
          FROM unnest(run_ids, owners, next_events, turn_ids, statuses)
               WITH ORDINALITY AS turn (run_id, owner, next_event, turn_id, status, place)
         WHERE turn.place <> ALL (coalesce(taken, '{}'));
    END IF;
END $$;

-- The errors of runs that were parked; those released without one, or closed, have none. Mail of the parked is nobody's.
CREATE FUNCTION outlast.after_leaving_1(
    run_ids text[], next_events integer[], counts integer[], statuses text[], errors text[], taken bigint[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outlast.run_details (run_id, error, error_at)
    SELECT turn.run_id, turn.error, turn.next_event + turn.count
      FROM unnest(run_ids, next_events, counts, errors)
           WITH ORDINALITY AS turn (run_id, next_event, count, error, place)
     WHERE turn.error IS NOT NULL AND turn.place = ANY (taken)
        ON CONFLICT (run_id) DO UPDATE SET error = excluded.error, error_at = excluded.error_at;

    DELETE FROM outlast.run_details
     USING unnest(run_ids, statuses, errors) WITH ORDINALITY AS turn (run_id, status, error, place)
     WHERE run_details.run_id = turn.run_id AND turn.status IS NOT NULL AND turn.error IS NULL
       AND turn.place = ANY (taken);

    UPDATE outlast.mailbox
       SET owner = NULL
      FROM unnest(run_ids, errors) WITH ORDINALITY AS turn (run_id, error, place)
     WHERE mailbox.run_id = turn.run_id AND turn.error IS NOT NULL AND turn.place = ANY (taken);
END $$;

-- Create runs with their first events, and with the mail that their starts bring along (`mail_*`, one element per
-- message; NULL if there is none). `never`: a closed run with the same workflow id is in the way too.
-- Returns those that were not created.
-- Each begins open, also one that ends with its first turn: at the unique index of the open, whoever wants the same
-- workflow id waits until it is known what became of it. Whether the id was used before can be seen only then, in a new
-- statement. Runs of this batch with one workflow id come after each other, in rounds; nearly always there is but one.
-- In the order of workflow ids: those are what batches meet at.
CREATE FUNCTION outlast.start_runs_1(
    run_ids text[], owners bigint[], counts integer[], turn_ids bigint[], at_us bigint[], events text[],
    statuses text[], wakes bigint[], namespaces text[], workflow_ids text[], workflows text[], queues text[],
    priorities bigint[], kinds text[], formats integer[], never boolean[], task_changes jsonb,
    mail_to text[], mail_ids text[], mail_bodies text[]
) RETURNS TABLE (place integer, answer text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    rounds  bigint;
    created text[];
    all_created text[] := '{}';
BEGIN
    SELECT max(same.copies) INTO rounds
      FROM (SELECT count(*) AS copies FROM unnest(namespaces, workflow_ids) AS new (namespace, workflow_id)
             GROUP BY new.namespace, new.workflow_id) AS same;

    FOR this_round IN 1 .. rounds LOOP
        WITH inserted AS (
            INSERT INTO outlast.runs (run_id, namespace, workflow_id, workflow, queue, status, owner, next_event,
                                      turn_id, wake_at_us, claims, priority, kind, format, started_at_us)
            SELECT new.run_id, new.namespace, new.workflow_id, new.workflow, new.queue, 'open', new.owner,
                   1 + new.count, new.turn_id, new.wake_at_us, 0, new.priority, new.kind, new.format, new.at_us
              FROM (SELECT *, row_number() OVER (PARTITION BY namespace, workflow_id ORDER BY run_id) AS copy
                      FROM unnest(run_ids, owners, counts, turn_ids, at_us, wakes, namespaces, workflow_ids, workflows,
                                  queues, priorities, kinds, formats)
                           AS new (run_id, owner, count, turn_id, at_us, wake_at_us, namespace, workflow_id, workflow,
                                   queue, priority, kind, format)) AS new
             WHERE new.copy = this_round
             ORDER BY new.namespace, new.workflow_id
                ON CONFLICT DO NOTHING
         RETURNING runs.run_id
        )
        SELECT array_agg(inserted.run_id) INTO created FROM inserted;

        IF true = ANY (never) THEN
            WITH refused AS (
                DELETE FROM outlast.runs
                 USING unnest(run_ids, never) AS new (run_id, never)
                 WHERE runs.run_id = new.run_id AND new.never AND new.run_id = ANY (created)
                   AND EXISTS (SELECT 1 FROM outlast.runs AS closed
                                WHERE closed.namespace = runs.namespace AND closed.workflow_id = runs.workflow_id
                                  AND closed.status <> 'open')
             RETURNING runs.run_id
            )
            SELECT array(SELECT unnest(created) EXCEPT SELECT run_id FROM refused) INTO created;
        END IF;

        UPDATE outlast.runs
           SET status = new.status, owner = NULL, closed_at_us = new.at_us
          FROM unnest(run_ids, at_us, statuses) AS new (run_id, at_us, status)
         WHERE runs.run_id = new.run_id AND new.status IS NOT NULL AND new.run_id = ANY (created);

        all_created := all_created || created;
    END LOOP;
    created := all_created;

    INSERT INTO outlast.journal (run_id, first_event, count, turn_id, at_us, events)
    SELECT new.run_id, 1, new.count, new.turn_id, new.at_us, new.events
      FROM unnest(run_ids, counts, turn_ids, at_us, events) AS new (run_id, count, turn_id, at_us, events)
     WHERE new.run_id = ANY (created);

    IF created <> '{}' AND mail_to IS NOT NULL THEN
        PERFORM outlast.put_mail_1(runs, mail.message_id, runs.started_at_us, mail.body)
           FROM unnest(mail_to, mail_ids, mail_bodies) WITH ORDINALITY AS mail (run_id, message_id, body, place)
           JOIN outlast.runs ON runs.run_id = mail.run_id
          WHERE mail.run_id = ANY (created)
          ORDER BY mail.place;
    END IF;
    IF created <> '{}' AND task_changes IS NOT NULL THEN
        PERFORM outlast.write_tasks_1(created, task_changes);
    END IF;

    IF cardinality(created) < cardinality(run_ids) THEN
        RETURN QUERY
        SELECT new.place::integer, 'id in use'
          FROM unnest(run_ids) WITH ORDINALITY AS new (run_id, place)
         WHERE new.run_id <> ALL (created);
    END IF;
END $$;

-- --- mail ------------------------------------------------------------------------------------------------------

-- Put one message into the mailbox of an open run that the caller has locked. Mail for a run without owner makes it
-- free to be claimed, unless it is parked.
CREATE FUNCTION outlast.put_mail_1(to_run outlast.runs, message_id text, at_us bigint, body text) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    INSERT INTO outlast.mailbox (run_id, message_id, owner, at_us, body)
    VALUES (to_run.run_id, message_id, to_run.owner, at_us, body)
        ON CONFLICT ON CONSTRAINT mailbox_run DO NOTHING;
    IF FOUND AND to_run.owner IS NULL AND NOT EXISTS (
        SELECT 1 FROM outlast.run_details AS parked
         WHERE parked.run_id = to_run.run_id AND parked.error_at = to_run.next_event)
    THEN
        INSERT INTO outlast.woken (run_id, namespace, queue, workflow, priority, format, since_us)
        VALUES (to_run.run_id, to_run.namespace, to_run.queue, to_run.workflow, to_run.priority, to_run.format, at_us)
            ON CONFLICT ON CONSTRAINT woken_pkey DO UPDATE SET since_us = least(woken.since_us, excluded.since_us);
    END IF;
END $$;

-- Send messages. One row per message: what became of it, and whose run it was sent to.
CREATE FUNCTION outlast.send_mail_1(
    run_ids text[], message_ids text[], at_us bigint[], bodies text[], beyond_limit boolean[], mailbox_limit integer
) RETURNS TABLE (answer text, owner bigint, queue text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    locked  text[];
    to_run  outlast.runs;
    waiting bigint;
BEGIN
    locked := ARRAY(SELECT runs.run_id FROM outlast.runs
                     WHERE runs.run_id = ANY (run_ids) ORDER BY runs.run_id FOR KEY SHARE);
    FOR i IN 1 .. cardinality(run_ids) LOOP
        -- Not one that has begun only just now: nothing keeps that from ending beside its mail.
        SELECT * INTO to_run FROM outlast.runs WHERE runs.run_id = run_ids[i] AND runs.run_id = ANY (locked);
        owner := to_run.owner;
        queue := to_run.queue;
        IF to_run.run_id IS NULL THEN
            answer := 'no such run';
        ELSIF to_run.status <> 'open' THEN
            answer := 'closed';
        ELSE
            SELECT count(*) INTO waiting
              FROM (SELECT 1 FROM outlast.mailbox WHERE mailbox.run_id = run_ids[i] LIMIT mailbox_limit) AS mail;
            IF waiting >= mailbox_limit AND NOT beyond_limit[i] AND NOT EXISTS (
                SELECT 1 FROM outlast.mailbox
                 WHERE mailbox.run_id = run_ids[i] AND mailbox.message_id = message_ids[i])
            THEN
                answer := 'full';
            ELSE
                PERFORM outlast.put_mail_1(to_run, message_ids[i], at_us[i], bodies[i]);
                answer := 'accepted';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- --- claims ----------------------------------------------------------------------------------------------------
-- Of each queue and workflow only the first few are read, in the order of an index: nothing here takes longer because
-- many runs sleep, are due, or are hosted elsewhere. Where rows may be claimed by others at the same moment, four
-- times as many are looked at as are wanted, and those that others have locked are skipped.

-- Owners of open runs who are not alive, or of whom there is no row any more; found by jumping through the index. Only
-- what lies between the nodes that are alive is looked at: a busy node leaves many dead entries in the index, and up to
-- the next vacuum whoever looks for the first live one walks over all of them.
CREATE FUNCTION outlast.dead_owners_1() RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE gaps (low, high) AS (
        SELECT coalesce(lag(node_id) OVER (ORDER BY node_id), -1), node_id FROM outlast.nodes WHERE alive
        UNION ALL
        SELECT coalesce(max(node_id), -1), 9223372036854775807 FROM outlast.nodes WHERE alive
    ), owners (owner, high) AS (
        SELECT (SELECT min(runs.owner) FROM outlast.runs
                 WHERE status = 'open' AND runs.owner IS NOT NULL AND runs.owner > gaps.low AND runs.owner < gaps.high),
               gaps.high
          FROM gaps
        UNION ALL
        SELECT (SELECT min(runs.owner) FROM outlast.runs
                 WHERE status = 'open' AND runs.owner IS NOT NULL
                   AND runs.owner > owners.owner AND runs.owner < owners.high),
               owners.high
          FROM owners WHERE owners.owner IS NOT NULL
    )
    SELECT owner FROM owners WHERE owner IS NOT NULL
$$;

-- The priorities that unowned runs of a workflow have in a queue: in front of those that are due may be any number
-- that sleep, so that a scan in order of priority would read them all.
CREATE FUNCTION outlast.priorities_1(of_namespace text, of_queue text, of_workflow text) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE levels (priority) AS (
        SELECT (SELECT max(runs.priority) FROM outlast.runs
                 WHERE status = 'open' AND owner IS NULL
                   AND namespace = of_namespace AND queue = of_queue AND workflow = of_workflow)
        UNION ALL
        SELECT (SELECT max(runs.priority) FROM outlast.runs
                 WHERE status = 'open' AND owner IS NULL
                   AND namespace = of_namespace AND queue = of_queue AND workflow = of_workflow
                   AND runs.priority < levels.priority)
          FROM levels WHERE levels.priority IS NOT NULL
    )
    SELECT priority FROM levels WHERE priority IS NOT NULL
$$;

-- Whether a node is alive that is about to own something. Its row stays until that is to be seen (`join_1`): nobody
-- would ask for the suspects of a node that is forgotten.
CREATE FUNCTION outlast.keep_node_1(claimer bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM outlast.nodes WHERE node_id = claimer AND alive FOR KEY SHARE;
    RETURN FOUND;
END $$;

-- A run of a dead node that committed nothing since it was claimed is a suspect: only taken if asked for, and alone.
CREATE FUNCTION outlast.claim_runs_1(
    claimer bigint, of_namespace text, of_queues text[], of_workflows text[], max_format integer, now_us bigint,
    max_runs integer, take_parked boolean, take_suspect boolean
) RETURNS TABLE (run outlast.runs, error text, lost boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    taken text[];
    was_lost boolean[];
BEGIN
    IF NOT EXISTS (SELECT 1 FROM outlast.nodes WHERE node_id = claimer AND alive) THEN
        RETURN;
    END IF;

    WITH hosted AS (
        SELECT queues.name AS queue, workflows.name AS workflow
          FROM unnest(of_queues) AS queues (name), unnest(of_workflows) AS workflows (name)
         WHERE NOT take_suspect
    ), candidates (run_id, owner, due_us) AS (
        SELECT left_behind.run_id, left_behind.owner, coalesce(left_behind.wake_at_us, 0)
          FROM outlast.dead_owners_1() AS dead (owner)
         CROSS JOIN LATERAL (
                SELECT runs.run_id, runs.owner, runs.wake_at_us
                  FROM outlast.runs
                 WHERE runs.status = 'open' AND runs.owner IS NOT NULL AND runs.owner = dead.owner
                   AND runs.namespace = of_namespace AND runs.queue = ANY (of_queues)
                   AND runs.workflow = ANY (of_workflows) AND runs.format <= max_format
                   AND runs.claims = 0 AND NOT take_suspect
                 ORDER BY runs.priority DESC, runs.wake_at_us NULLS FIRST, runs.run_id
                 LIMIT max_runs * 4) AS left_behind
        UNION ALL
        SELECT suspect.run_id, suspect.owner, coalesce(suspect.wake_at_us, 0)
          FROM outlast.dead_owners_1() AS dead (owner)
         CROSS JOIN LATERAL (
                SELECT runs.run_id, runs.owner, runs.wake_at_us
                  FROM outlast.runs
                 WHERE runs.status = 'open' AND runs.owner IS NOT NULL AND runs.owner = dead.owner
                   AND runs.namespace = of_namespace AND runs.queue = ANY (of_queues)
                   AND runs.workflow = ANY (of_workflows) AND runs.format <= max_format
                   AND runs.claims > 0 AND take_suspect
                 ORDER BY runs.claims, runs.priority DESC, runs.wake_at_us NULLS FIRST, runs.run_id
                 LIMIT 4) AS suspect
        UNION ALL
        SELECT due.run_id, NULL, due.wake_at_us
          FROM hosted
         CROSS JOIN LATERAL outlast.priorities_1(of_namespace, hosted.queue, hosted.workflow) AS level (priority)
         CROSS JOIN LATERAL (
                SELECT runs.run_id, runs.wake_at_us
                  FROM outlast.runs
                 WHERE runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = of_namespace
                   AND runs.queue = hosted.queue AND runs.workflow = hosted.workflow
                   AND runs.priority = level.priority AND runs.wake_at_us <= now_us AND runs.format <= max_format
                 ORDER BY runs.wake_at_us, runs.run_id
                 LIMIT max_runs * 4) AS due
        UNION ALL
        SELECT mail.run_id, NULL, mail.since_us
          FROM hosted
         CROSS JOIN LATERAL (
                SELECT woken.run_id, woken.since_us
                  FROM outlast.woken
                 WHERE woken.namespace = of_namespace AND woken.queue = hosted.queue
                   AND woken.workflow = hosted.workflow AND woken.format <= max_format
                 ORDER BY woken.priority DESC, woken.since_us, woken.run_id
                 LIMIT max_runs * 4) AS mail
        UNION ALL
        SELECT runs.run_id, NULL, now_us
          FROM outlast.run_details AS parked
          JOIN outlast.runs ON runs.run_id = parked.run_id
         WHERE take_parked AND NOT take_suspect AND parked.error_at = runs.next_event AND runs.status = 'open' AND runs.owner IS NULL
           AND runs.namespace = of_namespace AND runs.queue = ANY (of_queues) AND runs.workflow = ANY (of_workflows)
    ), merged AS (
        SELECT run_id, owner, min(due_us) AS due_us FROM candidates GROUP BY run_id, owner
    ), free AS (
        SELECT runs.run_id, runs.owner, merged.due_us, runs.priority
          FROM merged
          JOIN outlast.runs ON runs.run_id = merged.run_id
         WHERE runs.status = 'open' AND runs.format <= max_format
               -- Looked at again once the row is locked: it is still as it was found.
           AND runs.owner IS NOT DISTINCT FROM merged.owner
         ORDER BY CASE WHEN take_suspect THEN runs.claims END, runs.priority DESC, merged.due_us, runs.run_id
         LIMIT CASE WHEN take_suspect THEN least(max_runs, 1) ELSE max_runs END
           FOR UPDATE OF runs SKIP LOCKED
    )
    SELECT array_agg(free.run_id ORDER BY free.priority DESC, free.due_us, free.run_id),
           array_agg(free.owner IS NOT NULL ORDER BY free.priority DESC, free.due_us, free.run_id)
      INTO taken, was_lost
      FROM free;
    IF taken IS NULL OR NOT outlast.keep_node_1(claimer) THEN
        RETURN;
    END IF;

    UPDATE outlast.runs SET owner = claimer, claims = claims + 1 WHERE runs.run_id = ANY (taken);
    -- Mail is stamped with the owner of its run. A new statement: it sees the mail of all senders who were faster.
    UPDATE outlast.mailbox SET owner = claimer WHERE mailbox.run_id = ANY (taken);
    DELETE FROM outlast.woken WHERE woken.run_id = ANY (taken);

    RETURN QUERY
    SELECT runs,
           (SELECT details.error FROM outlast.run_details AS details
             WHERE details.run_id = runs.run_id AND details.error_at = runs.next_event),
           claimed.lost
      FROM unnest(taken, was_lost) WITH ORDINALITY AS claimed (run_id, lost, place)
      JOIN outlast.runs ON runs.run_id = claimed.run_id
     ORDER BY claimed.place;
END $$;

-- One run, if nobody alive owns it: due or not, parked or suspect, and whatever its workflow.
CREATE FUNCTION outlast.take_run_1(claimer bigint, wanted text)
RETURNS TABLE (run outlast.runs, error text, lost boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    until_now bigint;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM outlast.nodes WHERE node_id = claimer AND alive) THEN
        RETURN;
    END IF;
    SELECT runs.owner INTO until_now FROM outlast.runs WHERE runs.run_id = wanted AND runs.status = 'open' FOR UPDATE;
    -- A new statement: it sees the node of whoever had the lock before.
    IF NOT FOUND OR EXISTS (SELECT 1 FROM outlast.nodes WHERE node_id = until_now AND alive)
       OR NOT outlast.keep_node_1(claimer)
    THEN
        RETURN;
    END IF;

    UPDATE outlast.runs SET owner = claimer, claims = claims + 1 WHERE runs.run_id = wanted;
    UPDATE outlast.mailbox SET owner = claimer WHERE mailbox.run_id = wanted;
    DELETE FROM outlast.woken WHERE woken.run_id = wanted;

    RETURN QUERY
    SELECT runs,
           (SELECT details.error FROM outlast.run_details AS details
             WHERE details.run_id = runs.run_id AND details.error_at = runs.next_event),
           until_now IS NOT NULL
      FROM outlast.runs WHERE runs.run_id = wanted;
END $$;

-- How many runs of a queue are due and have no owner, counted up to a limit.
CREATE FUNCTION outlast.backlog_1(of_namespace text, of_queue text, now_us bigint, up_to integer) RETURNS bigint
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE workflows (workflow) AS (
        SELECT (SELECT min(runs.workflow) FROM outlast.runs
                 WHERE status = 'open' AND owner IS NULL AND namespace = of_namespace AND queue = of_queue)
        UNION ALL
        SELECT (SELECT min(runs.workflow) FROM outlast.runs
                 WHERE status = 'open' AND owner IS NULL AND namespace = of_namespace AND queue = of_queue
                   AND runs.workflow > workflows.workflow)
          FROM workflows WHERE workflows.workflow IS NOT NULL
    )
    SELECT count(*)
      FROM (SELECT 1
              FROM workflows
             CROSS JOIN LATERAL outlast.priorities_1(of_namespace, of_queue, workflows.workflow) AS level (priority)
             -- With a limit of its own, so that the planner cannot ask for the priorities once per run.
             CROSS JOIN LATERAL (
                    SELECT 1 FROM outlast.runs
                     WHERE runs.status = 'open' AND runs.owner IS NULL AND runs.namespace = of_namespace
                       AND runs.queue = of_queue AND runs.workflow = workflows.workflow
                       AND runs.priority = level.priority AND runs.wake_at_us <= now_us
                     LIMIT up_to) AS due
             WHERE workflows.workflow IS NOT NULL
             LIMIT up_to) AS waiting
$$;

-- --- tasks -----------------------------------------------------------------------------------------------------

-- The lost ones first: their runs have waited longest. Then what the claimer has and does not know of: all but the
-- held_* (run, activity, attempt: one element each), unless those are NULL.
CREATE FUNCTION outlast.claim_tasks_1(
    claimer bigint, of_namespace text, of_queues text[], of_activities text[], now_us bigint, max_tasks integer,
    held_runs text[], held_activities text[], held_attempts integer[]
) RETURNS TABLE (run_id text, activity_id text, activity text, queue text, attempt integer, body text, lost boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT 1 FROM outlast.nodes WHERE node_id = claimer AND alive) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH RECURSIVE claimers (node) AS (
        SELECT (SELECT min(tasks.node) FROM outlast.tasks WHERE node IS NOT NULL)
        UNION ALL
        SELECT (SELECT min(tasks.node) FROM outlast.tasks WHERE tasks.node IS NOT NULL AND tasks.node > claimers.node)
          FROM claimers WHERE claimers.node IS NOT NULL
    ), dead (node) AS (
        SELECT node FROM claimers WHERE node IS NOT NULL EXCEPT SELECT node_id FROM outlast.nodes WHERE alive
    ), candidates (run_id, activity_id, node, visible_at_us) AS (
        SELECT tasks.run_id, tasks.activity_id, tasks.node, tasks.visible_at_us
          FROM dead
          JOIN outlast.tasks ON tasks.node = dead.node AND tasks.node IS NOT NULL
         WHERE tasks.namespace = of_namespace AND tasks.queue = ANY (of_queues)
           AND tasks.activity = ANY (of_activities) AND tasks.visible_at_us <= now_us
        UNION ALL
        SELECT tasks.run_id, tasks.activity_id, tasks.node, tasks.visible_at_us
          FROM outlast.tasks
         WHERE held_runs IS NOT NULL AND tasks.node = claimer AND tasks.node IS NOT NULL
           AND tasks.namespace = of_namespace AND tasks.queue = ANY (of_queues)
           AND tasks.activity = ANY (of_activities) AND tasks.visible_at_us <= now_us
           AND (tasks.run_id, tasks.activity_id, tasks.attempt) NOT IN (
               SELECT held.run_id, held.activity_id, held.attempt
                 FROM unnest(held_runs, held_activities, held_attempts) AS held (run_id, activity_id, attempt))
        UNION ALL
        SELECT visible.run_id, visible.activity_id, NULL, visible.visible_at_us
          FROM unnest(of_queues) AS hosted (queue)
         CROSS JOIN LATERAL (
                SELECT tasks.run_id, tasks.activity_id, tasks.visible_at_us
                  FROM outlast.tasks
                 WHERE tasks.node IS NULL AND tasks.namespace = of_namespace AND tasks.queue = hosted.queue
                   AND tasks.activity = ANY (of_activities) AND tasks.visible_at_us <= now_us
                 ORDER BY tasks.visible_at_us, tasks.run_id, tasks.activity_id
                 LIMIT max_tasks * 4) AS visible
    ), free AS (
        SELECT tasks.run_id, tasks.activity_id, tasks.node
          FROM candidates
          JOIN outlast.tasks ON tasks.run_id = candidates.run_id AND tasks.activity_id = candidates.activity_id
               -- Looked at again once the row is locked: perhaps it is the next attempt by now, which is due later.
         WHERE tasks.node IS NOT DISTINCT FROM candidates.node AND tasks.visible_at_us <= now_us
         ORDER BY candidates.node IS NULL, candidates.node IS NOT DISTINCT FROM claimer,
                  candidates.visible_at_us, tasks.run_id, tasks.activity_id
         LIMIT max_tasks
           FOR UPDATE OF tasks SKIP LOCKED
    ), claimed AS (
        UPDATE outlast.tasks SET node = claimer, lost = tasks.lost OR free.node <> claimer AND free.node IS NOT NULL
          FROM free WHERE tasks.run_id = free.run_id AND tasks.activity_id = free.activity_id
     RETURNING tasks.run_id, tasks.activity_id, tasks.activity, tasks.queue, tasks.attempt, tasks.body,
               tasks.visible_at_us, tasks.lost, free.node
    )
    SELECT claimed.run_id, claimed.activity_id, claimed.activity, claimed.queue, claimed.attempt, claimed.body,
           claimed.lost
      FROM claimed
     ORDER BY claimed.node IS NULL, claimed.node IS NOT DISTINCT FROM claimer,
              claimed.visible_at_us, claimed.run_id, claimed.activity_id;
END $$;

-- Remove a task and put its outcome into the run's mailbox. No look at the limit of the mailbox: an outcome has no
-- sender who could try again later, and there are never more of them than tasks. NULL: the node holds it no more.
CREATE FUNCTION outlast.deliver_1(
    claimer bigint, of_run text, of_activity text, of_attempt integer, message_id text, at_us bigint, body text
) RETURNS TABLE (owner bigint, queue text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    to_run outlast.runs;
BEGIN
    SELECT * INTO to_run FROM outlast.runs WHERE runs.run_id = of_run FOR KEY SHARE;
    DELETE FROM outlast.tasks
     WHERE tasks.run_id = of_run AND tasks.activity_id = of_activity AND tasks.attempt = of_attempt
       AND tasks.node = claimer;
    IF FOUND THEN
        PERFORM outlast.put_mail_1(to_run, message_id, at_us, body);
        RETURN QUERY SELECT to_run.owner, to_run.queue;
    END IF;
END $$;

-- --- nodes -----------------------------------------------------------------------------------------------------

CREATE FUNCTION outlast.join_1(node_name text, client text, pid integer, started timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    dead   bigint[];
    joined bigint;
BEGIN
    -- The dead that nothing refers to any more: nobody will ask for them again. Locked first, which whoever claims
    -- something at this moment prevents (`keep_node_1`); what others have claimed until then is seen.
    dead := ARRAY(SELECT node_id FROM outlast.nodes WHERE NOT alive FOR UPDATE SKIP LOCKED);
    DELETE FROM outlast.nodes
     WHERE node_id = ANY (dead)
       AND NOT EXISTS (SELECT 1 FROM outlast.runs
                        WHERE runs.status = 'open' AND runs.owner IS NOT NULL AND runs.owner = nodes.node_id)
       AND NOT EXISTS (SELECT 1 FROM outlast.tasks WHERE tasks.node IS NOT NULL AND tasks.node = nodes.node_id);
    INSERT INTO outlast.nodes (name, client, alive, counter, backend_pid, backend_start)
    VALUES (node_name, client, true, 0, pid, started)
    RETURNING node_id INTO joined;
    RETURN joined;
END $$;
