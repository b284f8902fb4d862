-- Several accepted runs can be undone, each by itself: what speaks against one stands with its halves.
ALTER TABLE session RENAME COLUMN is_refuted TO is_doubted;  -- accepted, and its run began again
UPDATE session SET is_doubted = 0;
UPDATE session SET is_doubted = 1
    WHERE state = 4 AND action <> 'members'
      AND EXISTS (SELECT 1 FROM cohort WHERE id = session.cohort AND is_doubted = 1 AND accepted_run = session.run);
ALTER TABLE session ADD COLUMN is_left_out INTEGER NOT NULL DEFAULT 0; -- never sent: there is nobody in it
ALTER TABLE source ADD COLUMN reuses_session_ids INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cohort DROP COLUMN accepted_run;
ALTER TABLE cohort DROP COLUMN is_doubted;
ALTER TABLE cohort ADD COLUMN misses_partner INTEGER NOT NULL DEFAULT 0; -- a run of one half is not all there
UPDATE cohort SET misses_partner = 1
    WHERE source IN (SELECT name FROM source WHERE sends_empty_halves = 1);
