-- Trait keys get a table of their own, so that a key can pass from one cohort to another. Until now
-- each cohort had one key for ever, so the numbers stay the same.
CREATE TABLE trait (
    id     INTEGER PRIMARY KEY,
    key    TEXT NOT NULL UNIQUE,
    cohort INTEGER              -- whose it is, or was last
) STRICT;
INSERT INTO trait (id, key, cohort) SELECT id, trait_key, id FROM cohort;

-- How a source sends, as far as it was seen.
CREATE TABLE source (
    name                 TEXT PRIMARY KEY,
    sends_empty_halves   INTEGER NOT NULL DEFAULT 0,
    shares_session_ids   INTEGER NOT NULL DEFAULT 0,
    heard_at             INTEGER NOT NULL,
    awake_since          INTEGER NOT NULL   -- heard again then, after a silence
) STRICT, WITHOUT ROWID;

ALTER TABLE cohort RENAME TO cohort_1;
CREATE TABLE cohort (
    id               INTEGER PRIMARY KEY,
    source           TEXT NOT NULL,
    project_id       TEXT NOT NULL,
    cohort_id        TEXT NOT NULL,
    name             TEXT NOT NULL,
    former_name      TEXT,
    trait            INTEGER NOT NULL REFERENCES trait (id),
    identified_by    TEXT NOT NULL,             -- the rules under which its people are known
    last_heard_at    INTEGER NOT NULL,
    first_applied_at INTEGER,                   -- when its first session had taken effect
    standing         INTEGER NOT NULL DEFAULT 0, -- 0 followed, 1 everybody leaves, 2 they have left, 3 forgotten
    members          INTEGER NOT NULL DEFAULT 0, -- identifiers, by what they are to the cohort
    leavers          INTEGER NOT NULL DEFAULT 0,
    held             INTEGER NOT NULL DEFAULT 0,
    kept             INTEGER NOT NULL DEFAULT 0,
    held_session     TEXT,
    held_since       INTEGER,
    hold_decision    INTEGER,                   -- being carried out: 1 approve, 2 discard
    walked_through   TEXT,                      -- how far an operator's order was carried out
    run              INTEGER NOT NULL DEFAULT 0, -- the run under way, by number
    run_heard_at     INTEGER NOT NULL DEFAULT 0,
    resumed_at       INTEGER NOT NULL DEFAULT 0, -- when it was heard of again after a run was over
    run_began_at     INTEGER NOT NULL DEFAULT 0,
    began_again      INTEGER,                   -- the first of the runs that the one under way repeats under their ids
    accepted_run     INTEGER,                   -- the one that can still be undone
    is_doubted       INTEGER NOT NULL DEFAULT 0,
    runs_accepted    INTEGER NOT NULL DEFAULT 0,
    runs_dropped     INTEGER NOT NULL DEFAULT 0,
    runs_undone      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (source, project_id, cohort_id)
) STRICT;
INSERT INTO cohort (id, source, project_id, cohort_id, name, trait, identified_by, last_heard_at, first_applied_at, members, leavers)
    SELECT id, source, project_id, cohort_id, name, id, '', last_heard_at,
           (SELECT max(completed_at) FROM session WHERE cohort = cohort_1.id AND state >= 2), members, leavers
    FROM cohort_1;
DROP TABLE cohort_1;

-- Members that cannot have the trait, since the last full sync.
CREATE TABLE set_aside (
    cohort  INTEGER NOT NULL,
    reason  TEXT NOT NULL,
    members INTEGER NOT NULL,
    PRIMARY KEY (cohort, reason)
) STRICT, WITHOUT ROWID;

-- The people stand last: whatever stands behind them can only be read by way of them.
CREATE TABLE inbox_2 (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,
    source        TEXT NOT NULL,
    project_id    TEXT NOT NULL,
    cohort_id     TEXT NOT NULL,
    cohort_name   TEXT,
    action        TEXT NOT NULL,
    session_id    TEXT,
    page          INTEGER,
    total_pages   INTEGER,
    received_at   INTEGER NOT NULL,
    identified_by TEXT NOT NULL DEFAULT '',
    maps_people   INTEGER NOT NULL DEFAULT 0, -- somebody on it has an identifier other than the distinct id
    received      INTEGER NOT NULL DEFAULT 1, -- members, usable or not
    set_aside     TEXT NOT NULL DEFAULT '',   -- 'missing 3,blank 1'
    is_refused    INTEGER NOT NULL DEFAULT 0, -- no page, but that we answered one with our own trouble
    fingerprint   BLOB NOT NULL,
    roster        BLOB NOT NULL
) STRICT;
INSERT INTO inbox_2 (seq, source, project_id, cohort_id, cohort_name, action, session_id, page, total_pages, received_at, fingerprint, roster)
    SELECT seq, source, project_id, cohort_id, cohort_name, action, session_id, page, total_pages, received_at, fingerprint, roster FROM inbox;
-- A number is never used again, though no page may be left that has it.
DELETE FROM sqlite_sequence WHERE name = 'inbox_2';
INSERT INTO sqlite_sequence (name, seq) SELECT 'inbox_2', seq FROM sqlite_sequence WHERE name = 'inbox';
DROP TABLE inbox;
ALTER TABLE inbox_2 RENAME TO inbox;

-- States: 0 open, 1 whole, 2 tentative, 3 ended, 4 accepted.
ALTER TABLE session ADD COLUMN run INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN began_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN is_refuted INTEGER NOT NULL DEFAULT 0; -- tentative, and spoken against
ALTER TABLE session ADD COLUMN is_closed INTEGER NOT NULL DEFAULT 0;  -- no page changes it any more
ALTER TABLE session ADD COLUMN is_witness INTEGER NOT NULL DEFAULT 0; -- ended, and its pages are still asked
ALTER TABLE session ADD COLUMN whole_at_seq INTEGER;                  -- the page that made it whole
ALTER TABLE session ADD COLUMN is_judged INTEGER NOT NULL DEFAULT 0;  -- what becomes of the layers is in `fate`
ALTER TABLE session ADD COLUMN holds INTEGER NOT NULL DEFAULT 0;      -- its removals are held
UPDATE session SET state = CASE action WHEN 'members' THEN 4 ELSE 3 END WHERE state = 2;
UPDATE session SET is_closed = 1 WHERE state = 3;
UPDATE session SET whole_at_seq = id WHERE state = 1;
DROP INDEX session_whole;
CREATE INDEX session_whole ON session (whole_at_seq) WHERE state = 1;

ALTER TABLE session_page ADD COLUMN heard_at INTEGER NOT NULL DEFAULT 0;  -- last
-- A session that the upgrade interrupts goes on: it was heard of when it was last heard of.
UPDATE session SET began_at = heard_at;
UPDATE session_page SET heard_at = (SELECT s.heard_at FROM session s WHERE s.id = session_page.session);
UPDATE cohort SET run_heard_at = last_heard_at;
INSERT INTO source (name, heard_at, awake_since) SELECT source, max(last_heard_at), 0 FROM cohort GROUP BY source;
-- A session that begins again shares the pages that stay with the layer that it replaces.
CREATE INDEX session_page_by_seq ON session_page (inbox_seq);

-- Pages whose last answer was our own trouble.
CREATE TABLE refusal (
    cohort     INTEGER NOT NULL,
    action     TEXT NOT NULL,
    session_id TEXT NOT NULL,
    page       INTEGER NOT NULL,
    refused_at INTEGER NOT NULL,
    PRIMARY KEY (cohort, action, session_id, page)
) STRICT, WITHOUT ROWID;

-- What becomes of layers when a session takes effect: 1 dropped, 2 settled, 3 refuted.
CREATE TABLE fate (
    session INTEGER NOT NULL,
    layer   INTEGER NOT NULL,
    fate    INTEGER NOT NULL,
    PRIMARY KEY (session, layer)
) STRICT, WITHOUT ROWID;

-- Where a layer did not change a person whom it names: 1 found so, 2 struck.
CREATE TABLE layer_mark (
    session    INTEGER NOT NULL,
    identifier TEXT NOT NULL,
    person     BLOB NOT NULL,
    mark       INTEGER NOT NULL,
    PRIMARY KEY (session, identifier, person)
) STRICT, WITHOUT ROWID;

-- Who is in a cohort, and who is known to have left it. `person` is a hash of the distinct id, empty
-- where the identifier is the person.
-- Standing: 0 left, 1 member, 2 left and held, 3 left and kept by decision.
ALTER TABLE member RENAME TO member_1;
CREATE TABLE member (
    cohort     INTEGER NOT NULL,
    identifier TEXT NOT NULL,
    person     BLOB NOT NULL,
    standing   INTEGER NOT NULL,
    PRIMARY KEY (cohort, identifier, person)
) STRICT, WITHOUT ROWID;
INSERT INTO member (cohort, identifier, person, standing) SELECT cohort, identifier, x'', member FROM member_1;
DROP TABLE member_1;
CREATE INDEX member_held ON member (cohort, identifier) WHERE standing >= 2;

-- The identifier of a person, where it is another property than the distinct id.
CREATE TABLE holder (
    cohort     INTEGER NOT NULL,
    person     BLOB NOT NULL,
    identifier TEXT NOT NULL,
    PRIMARY KEY (cohort, person)
) STRICT, WITHOUT ROWID;

-- Traits that change hands, while what follows for each person is written down.
CREATE TABLE key_move (
    trait          INTEGER PRIMARY KEY,
    from_cohort    INTEGER,
    to_cohort      INTEGER,
    walked_through TEXT,
    is_done        INTEGER NOT NULL DEFAULT 0
) STRICT;

-- People whom an operator wants erased.
CREATE TABLE erasure (
    identifier     TEXT PRIMARY KEY,
    traits         INTEGER NOT NULL,
    walked_through INTEGER NOT NULL DEFAULT 0   -- pages of the inbox up to here are without them
) STRICT, WITHOUT ROWID;

-- What is wanted: 0 left, 1 member, 2 erased.
ALTER TABLE pending RENAME COLUMN cohort TO trait;
ALTER TABLE pending RENAME COLUMN member TO wanted;
CREATE INDEX pending_erased ON pending (destination) WHERE wanted = 2;
ALTER TABLE backlog RENAME COLUMN cohort TO trait;
ALTER TABLE backlog RENAME COLUMN member TO wanted;
ALTER TABLE dead_letter RENAME COLUMN cohort TO trait;
ALTER TABLE dead_letter RENAME COLUMN member TO wanted;
