-- Paths of a repository that jobs have declared to change (agentina/control/pathrules.py).
CREATE TABLE path_claims (
    job_id INTEGER PRIMARY KEY REFERENCES jobs(id),
    organization_id INTEGER NOT NULL,
    repository TEXT NOT NULL,
    -- JSON.
    paths TEXT NOT NULL,
    only_warns INTEGER NOT NULL,
    -- An agent has the job.
    is_held INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX path_claims_of_repository ON path_claims (organization_id, repository, is_held);
-- Whether the job has a row there: most have none, and are not looked up.
ALTER TABLE jobs ADD COLUMN claims_paths INTEGER NOT NULL DEFAULT 0;
