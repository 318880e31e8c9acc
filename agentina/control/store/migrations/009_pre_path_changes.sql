-- Paths of a repository that tasks changed, to be compared with those of tasks that ran at the same time.
CREATE TABLE path_changes (
    task_id INTEGER PRIMARY KEY REFERENCES tasks(id),
    job_id INTEGER NOT NULL,
    organization_id INTEGER NOT NULL,
    repository TEXT NOT NULL,
    -- JSON.
    paths TEXT NOT NULL,
    ended_ms INTEGER NOT NULL
);
CREATE INDEX path_changes_of_repository ON path_changes (organization_id, repository, ended_ms);
