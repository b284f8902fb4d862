-- What cohorts are to destinations. Until now every cohort was followed for every destination, once
-- that had been brought up.
CREATE TABLE route (
    cohort         INTEGER NOT NULL,
    destination    INTEGER NOT NULL,
    is_wanted      INTEGER NOT NULL,   -- whether the settings lead there
    state          INTEGER NOT NULL,   -- 0 never followed, 1 being brought up, 2 followed, 3 being forgotten, 4 no longer followed
    since          INTEGER NOT NULL,   -- when it came to be so
    walked_through TEXT,               -- while it is brought up: everybody up to here is pending
    PRIMARY KEY (cohort, destination)
) STRICT, WITHOUT ROWID;
CREATE INDEX route_by_state ON route (state, is_wanted);
INSERT INTO route (cohort, destination, is_wanted, state, since)
    SELECT c.id, d.id, 1, CASE WHEN m.value IS NULL THEN 1 ELSE 2 END, coalesce(m.value, 0)
    FROM destination d LEFT JOIN meta m ON m.key = 'brought_up:' || d.name CROSS JOIN cohort c;
DELETE FROM meta WHERE key GLOB 'brought_up:*';

-- While cohorts are forgotten there: no row of `pending` up to here is theirs.
ALTER TABLE destination ADD COLUMN forgotten_through TEXT;
