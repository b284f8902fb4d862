-- The express lane: changes that must not wait for the sweep through a large backlog. The index has
-- a row for those alone, so that a first sync of millions, which stays out of it, pays nothing.
ALTER TABLE pending ADD COLUMN express_at INTEGER;  -- from when on the lane may take it, the linger aside; null: the sweep alone does
CREATE INDEX pending_express ON pending (destination, trait, wanted, express_at) WHERE express_at IS NOT NULL;
-- Whoever waits to leave waits no longer behind those who wait to join.
UPDATE pending SET express_at = since WHERE wanted <> 1;
