-- What an operator paused, and since when.
ALTER TABLE cohort ADD COLUMN paused_at INTEGER;       -- null: not paused
ALTER TABLE destination ADD COLUMN paused_at INTEGER;  -- null: not paused
-- Traits of paused cohorts. What is pending of them is put aside, out of the reach of whoever looks for
-- something to deliver: such a row of `pending` has the destination's number below nought. Whom an
-- operator wants erased stays where it is.
CREATE TABLE parked (
    trait INTEGER PRIMARY KEY,
    state INTEGER NOT NULL      -- 1 being put aside, 2 put aside, 3 being brought back
) STRICT;
