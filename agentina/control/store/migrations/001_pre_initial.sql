-- The first schema. Times ending in _ms are milliseconds since the Unix epoch in the control plane's clock.
-- JSON is stored as text; what is searched for has a column of its own.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE organizations (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    plan TEXT NOT NULL,
    max_agents INTEGER NOT NULL,
    max_concurrent_tasks_per_agent INTEGER NOT NULL,
    channel TEXT NOT NULL,
    offline_grace_hours REAL NOT NULL,
    created_ms INTEGER NOT NULL
);

CREATE TABLE operators (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    token_sha256 TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER
);

CREATE TABLE tokens (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL UNIQUE,
    token_sha256 TEXT NOT NULL UNIQUE,
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    role TEXT,
    labels TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER,
    used_ms INTEGER,
    used_by TEXT,
    used_key TEXT,
    agent_id INTEGER REFERENCES agents(id),
    refused INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE agents (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL UNIQUE,
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    public_key TEXT NOT NULL,
    hostname TEXT NOT NULL,
    instance TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    role TEXT,
    labels TEXT NOT NULL,
    max_concurrent_tasks INTEGER NOT NULL,
    state TEXT NOT NULL,
    state_reason TEXT NOT NULL DEFAULT '',
    session INTEGER NOT NULL DEFAULT 0,
    boot_id TEXT NOT NULL DEFAULT '',
    version TEXT NOT NULL DEFAULT '',
    executor TEXT NOT NULL DEFAULT '',
    guarantees TEXT NOT NULL DEFAULT '{}',
    runners TEXT NOT NULL DEFAULT '["command"]',
    facts TEXT NOT NULL DEFAULT '{}',
    host TEXT NOT NULL DEFAULT '',
    license_issued_ms INTEGER NOT NULL,
    last_heartbeat_ms INTEGER,
    created_ms INTEGER NOT NULL,
    removed_ms INTEGER
);
CREATE INDEX agents_present ON agents(organization_id) WHERE removed_ms IS NULL;

-- How far each outbox has been applied.
CREATE TABLE streams (
    agent_id INTEGER NOT NULL REFERENCES agents(id),
    stream TEXT NOT NULL,
    applied INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL,
    PRIMARY KEY (agent_id, stream)
) WITHOUT ROWID;

-- What makes jobs equal for scheduling: an agent can serve all jobs of a class or none.
CREATE TABLE classes (
    id INTEGER PRIMARY KEY,
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    role TEXT NOT NULL,
    labels TEXT NOT NULL,
    runner TEXT NOT NULL,
    UNIQUE (organization_id, role, labels, runner)
);

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL UNIQUE,
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    class_id INTEGER NOT NULL REFERENCES classes(id),
    name TEXT NOT NULL,
    role TEXT,
    spec TEXT NOT NULL,
    priority INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '',
    -- 1: queued, its needs are met, its backoff is over.
    ready INTEGER NOT NULL,
    -- Needed jobs that have not succeeded yet.
    needs_left INTEGER NOT NULL DEFAULT 0,
    -- End of the backoff, for people and for the start of the process.
    runnable_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER,
    -- Number of the newest task: the epoch.
    tasks INTEGER NOT NULL DEFAULT 0,
    -- Attempts that were started, and how many of them were before the last retry by hand.
    attempts INTEGER NOT NULL DEFAULT 0,
    attempts_before INTEGER NOT NULL DEFAULT 0,
    -- Assignments in a row that came back unstarted.
    returns INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    dead_letter INTEGER NOT NULL DEFAULT 0,
    submission_key TEXT,
    submission_sha256 TEXT
);
CREATE INDEX jobs_ready ON jobs(class_id, priority DESC, id) WHERE ready = 1;
CREATE INDEX jobs_backoff ON jobs(runnable_ms) WHERE state = 'queued' AND ready = 0 AND needs_left = 0;
CREATE UNIQUE INDEX jobs_submission ON jobs(organization_id, submission_key) WHERE submission_key IS NOT NULL;

CREATE TABLE needs (
    needed_id INTEGER NOT NULL REFERENCES jobs(id),
    job_id INTEGER NOT NULL REFERENCES jobs(id),
    PRIMARY KEY (needed_id, job_id)
) WITHOUT ROWID;
CREATE INDEX needs_of_job ON needs(job_id);

CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL REFERENCES jobs(id),
    number INTEGER NOT NULL,
    agent_id INTEGER NOT NULL REFERENCES agents(id),
    session INTEGER NOT NULL,
    poll INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '',
    assigned_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER,
    pid INTEGER,
    outcome TEXT,
    -- 1: counted among the job's attempts.
    counted INTEGER NOT NULL DEFAULT 0,
    -- Why the agent was told to end it; NULL: it was not.
    stop_reason TEXT,
    -- 1: the host has reported its end (perhaps long after the control plane gave it up).
    host_ended INTEGER NOT NULL DEFAULT 0,
    UNIQUE (job_id, number)
);
CREATE INDEX tasks_held ON tasks(agent_id) WHERE ended_ms IS NULL;

CREATE TABLE events (
    job_id INTEGER NOT NULL REFERENCES jobs(id),
    number INTEGER NOT NULL,
    task INTEGER,
    at_ms INTEGER NOT NULL,
    state TEXT,
    text TEXT NOT NULL,
    PRIMARY KEY (job_id, number)
) WITHOUT ROWID;

CREATE TABLE artifacts (
    task_id INTEGER NOT NULL REFERENCES tasks(id),
    name TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    kind TEXT NOT NULL,
    complete INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (task_id, name)
) WITHOUT ROWID;

-- Append-only; each hash covers the record and the hash before it.
CREATE TABLE audit (
    number INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TRIGGER audit_is_append_only_1 BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_append_only_2 BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
