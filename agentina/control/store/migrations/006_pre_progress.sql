-- How far a task said it was, last (JSON of agentina.protocol.wire.Progress).
ALTER TABLE tasks ADD COLUMN progress TEXT;
