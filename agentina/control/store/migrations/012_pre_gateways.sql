-- What the jobs of a class need their host's gateway for is part of what makes them equal.
CREATE TABLE classes_anew (
    id INTEGER PRIMARY KEY,
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    role TEXT NOT NULL,
    labels TEXT NOT NULL,
    runner TEXT NOT NULL,
    -- '', 'hosts' or 'budget'; of jobs submitted before this: '', so that hosts which cannot run them give them back.
    gateway TEXT NOT NULL DEFAULT '',
    UNIQUE (organization_id, role, labels, runner, gateway)
);
INSERT INTO classes_anew (id, organization_id, role, labels, runner)
    SELECT id, organization_id, role, labels, runner FROM classes;
DROP TABLE classes;
ALTER TABLE classes_anew RENAME TO classes;
