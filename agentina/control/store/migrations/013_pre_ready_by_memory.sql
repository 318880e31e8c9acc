-- Whether a job that waits fits an agent is seen in the index: rows of those that do not are not read, and have their
-- whole specification in them.
DROP INDEX jobs_ready;
CREATE INDEX jobs_ready ON jobs(class_id, priority DESC, id, memory_bytes, ready) WHERE ready = 1;
