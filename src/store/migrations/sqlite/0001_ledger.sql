-- Times are milliseconds since the Unix epoch unless a name says otherwise.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE source_property (
    source   TEXT NOT NULL,
    property TEXT NOT NULL,
    PRIMARY KEY (source, property)
) STRICT, WITHOUT ROWID;

-- Pages written down. A row stays until its session has taken effect and is over.
-- AUTOINCREMENT: a number is never used again, so 'taken through' in meta stays true.
CREATE TABLE inbox (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    source      TEXT NOT NULL,
    project_id  TEXT NOT NULL,
    cohort_id   TEXT NOT NULL,
    cohort_name TEXT,
    action      TEXT NOT NULL,
    session_id  TEXT,
    page        INTEGER,
    total_pages INTEGER,
    received_at INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    roster      BLOB NOT NULL
) STRICT;

CREATE TABLE cohort (
    id            INTEGER PRIMARY KEY,
    source        TEXT NOT NULL,
    project_id    TEXT NOT NULL,
    cohort_id     TEXT NOT NULL,
    name          TEXT NOT NULL,
    trait_key     TEXT NOT NULL UNIQUE,
    last_heard_at INTEGER NOT NULL,
    members       INTEGER NOT NULL DEFAULT 0,
    leavers       INTEGER NOT NULL DEFAULT 0,
    UNIQUE (source, project_id, cohort_id)
) STRICT;

CREATE TABLE session (
    id              INTEGER PRIMARY KEY,
    cohort          INTEGER NOT NULL REFERENCES cohort (id),
    action          TEXT NOT NULL,
    session_id      TEXT,               -- null: a page that stands alone
    state           INTEGER NOT NULL,   -- 0 open, 1 whole, 2 applied, 3 ended
    effect          INTEGER NOT NULL,   -- 0 replace, 1 add, 2 remove
    total_pages     INTEGER NOT NULL,
    heard_at        INTEGER NOT NULL,
    completed_at    INTEGER,
    applied_through TEXT                -- while it takes effect: everything up to here is done
) STRICT;
CREATE UNIQUE INDEX session_by_name ON session (cohort, action, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX session_by_cohort ON session (cohort);
CREATE INDEX session_by_state ON session (state, heard_at);
CREATE INDEX session_whole ON session (id) WHERE state = 1;

CREATE TABLE session_page (
    session     INTEGER NOT NULL REFERENCES session (id),
    page        INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    inbox_seq   INTEGER NOT NULL,
    PRIMARY KEY (session, page)
) STRICT, WITHOUT ROWID;

-- Who is in a cohort (member = 1), and who is known to have left it (0).
CREATE TABLE member (
    cohort     INTEGER NOT NULL,
    identifier TEXT NOT NULL,
    member     INTEGER NOT NULL,
    PRIMARY KEY (cohort, identifier)
) STRICT, WITHOUT ROWID;

CREATE TABLE destination (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- What a destination does not know yet. No row: it was told what `member` says.
-- The order of the key brings all cohorts of one identity together.
CREATE TABLE pending (
    destination INTEGER NOT NULL,
    identifier  TEXT NOT NULL,
    cohort      INTEGER NOT NULL,
    member      INTEGER NOT NULL,   -- as in `member`
    told        INTEGER,            -- null unknown, 0 absent, 1 true, 2 false
    sent        INTEGER,            -- states that calls without a known end may still bring about: 1 absent, 2 true, 4 false
    late_until  INTEGER,            -- until when they may
    since       INTEGER NOT NULL,
    due_at      INTEGER,            -- null: as soon as the linger is over
    attempts    INTEGER NOT NULL DEFAULT 0,
    error       TEXT,
    PRIMARY KEY (destination, identifier, cohort)
) STRICT, WITHOUT ROWID;

-- How many rows of `pending` there are, by age: kept in step, so that nobody has to count millions.
CREATE TABLE backlog (
    destination   INTEGER NOT NULL,
    cohort        INTEGER NOT NULL,
    member        INTEGER NOT NULL,
    since_seconds INTEGER NOT NULL,
    rows          INTEGER NOT NULL,
    PRIMARY KEY (destination, cohort, member, since_seconds)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letter (
    destination INTEGER NOT NULL,
    identifier  TEXT NOT NULL,
    cohort      INTEGER NOT NULL,
    member      INTEGER NOT NULL,
    sent        INTEGER,            -- as in `pending`
    late_until  INTEGER,
    since       INTEGER NOT NULL,
    error       TEXT NOT NULL,
    PRIMARY KEY (destination, identifier, cohort)
) STRICT, WITHOUT ROWID;
CREATE INDEX dead_letter_by_cohort ON dead_letter (destination, cohort, member);
