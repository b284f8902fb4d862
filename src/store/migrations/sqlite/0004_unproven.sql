-- What calls counted as written since the last canary that proved that what is written stays: a row
-- for each transaction that settled any (`Unproven` says how they are encoded).
-- AUTOINCREMENT: a number is never used again, so a mark from before stays true.
CREATE TABLE unproven (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    destination INTEGER NOT NULL,
    traits      BLOB NOT NULL
) STRICT;
CREATE INDEX unproven_by_destination ON unproven (destination);
