-- What an operator, or the canary, ordered to be written again: one row a destination and cohort.
-- AUTOINCREMENT: a number is never used again, so a mark in `pending` is never another order's.
CREATE TABLE resync (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    destination      INTEGER NOT NULL,
    cohort           INTEGER NOT NULL,            -- 0: everything
    ordered_at       INTEGER NOT NULL,
    calls_per_second REAL,                        -- null: as fast as the destination takes it
    state            INTEGER NOT NULL DEFAULT 0,  -- 0 being walked, 1 all of it is pending, 2 written, 3 cancelled
    walked_through   TEXT,                        -- everybody up to here was made pending
    reached_through  TEXT,                        -- and before it was ordered again, everybody up to here
    brought_up       INTEGER NOT NULL DEFAULT 0,  -- traits walked
    total            INTEGER NOT NULL,            -- traits when it was ordered
    UNIQUE (destination, cohort)
) STRICT;

-- Which order made the trait pending, until it is written. The index has a row for those alone.
ALTER TABLE pending ADD COLUMN resync INTEGER;
CREATE INDEX pending_resync ON pending (destination, resync) WHERE resync IS NOT NULL;

-- Until now everything was walked cohort by cohort: what is left of that, from where it stands.
INSERT INTO resync (destination, cohort, ordered_at, walked_through, total)
    SELECT d.id, c.id, 0,
           CASE WHEN c.id = json_extract(m.value, '$.cohort') THEN json_extract(m.value, '$.after') END,
           c.members + c.leavers + c.held + c.kept
    FROM meta m JOIN destination d ON m.key = 'rewrite:' || d.name
    JOIN cohort c ON c.id >= json_extract(m.value, '$.cohort')
    ORDER BY c.id;
DELETE FROM meta WHERE key GLOB 'rewrite:*';
