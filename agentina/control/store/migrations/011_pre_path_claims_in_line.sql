-- The job waits for others' claims: found without a look at those of all jobs that ever were.
ALTER TABLE path_claims ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
UPDATE path_claims SET waits = 1
    WHERE job_id IN (SELECT id FROM jobs WHERE state = 'queued' AND reason = 'waiting-for-paths');
CREATE INDEX path_claims_waiting ON path_claims (organization_id, repository) WHERE waits = 1;
-- Addresses are the same in small and in capital letters now, but for paths on the host.
UPDATE path_claims SET repository = lower(repository) WHERE repository NOT LIKE '/%';
UPDATE path_changes SET repository = lower(repository) WHERE repository NOT LIKE '/%';
