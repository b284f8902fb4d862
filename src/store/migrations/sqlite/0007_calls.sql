-- Calls made to a destination in a calendar month (UTC), those included that were leased to be made.
CREATE TABLE calls (
    destination INTEGER NOT NULL REFERENCES destination (id),
    month       TEXT NOT NULL,      -- such as 2026-11
    calls       INTEGER NOT NULL,
    since       INTEGER NOT NULL,   -- when counting began in this month
    PRIMARY KEY (destination, month)
) STRICT, WITHOUT ROWID;
