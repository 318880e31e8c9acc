-- Anomalies: findings of hosts and of the control plane, added up where they are the same (agentina/protocol/anomalies.py).
CREATE TABLE anomalies (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL UNIQUE,
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    fingerprint TEXT NOT NULL,
    kind TEXT NOT NULL,
    code TEXT NOT NULL,
    summary TEXT NOT NULL,
    state TEXT NOT NULL,
    -- How often it happened, on how many agents, and how often after it was closed.
    count INTEGER NOT NULL DEFAULT 0,
    agents INTEGER NOT NULL DEFAULT 0,
    reopened INTEGER NOT NULL DEFAULT 0,
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    -- When it came to its state, by whom, and what they said.
    changed_ms INTEGER NOT NULL,
    changed_by TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    -- What an operator says to the tasks that reported it.
    answer TEXT NOT NULL DEFAULT '',
    answered_by TEXT NOT NULL DEFAULT '',
    answered_ms INTEGER,
    -- Grows over all anomalies with every change.
    revision INTEGER NOT NULL UNIQUE,
    UNIQUE (organization_id, fingerprint)
);
CREATE INDEX anomalies_recent ON anomalies(last_ms, id);
CREATE INDEX anomalies_by_state ON anomalies(state, organization_id, changed_ms);

-- On which agents it happened.
CREATE TABLE anomaly_agents (
    anomaly_id INTEGER NOT NULL REFERENCES anomalies(id) ON DELETE CASCADE,
    agent_id INTEGER NOT NULL REFERENCES agents(id),
    PRIMARY KEY (anomaly_id, agent_id)
) WITHOUT ROWID;
CREATE INDEX anomaly_agents_of_agent ON anomaly_agents(agent_id);

-- The newest reports of each, with their evidence.
CREATE TABLE anomaly_reports (
    id INTEGER PRIMARY KEY,
    anomaly_id INTEGER NOT NULL REFERENCES anomalies(id) ON DELETE CASCADE,
    -- NULL: the control plane's own.
    agent_id INTEGER REFERENCES agents(id),
    -- The host's name for it: applied once.
    report_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    release TEXT NOT NULL,
    summary TEXT NOT NULL,
    count INTEGER NOT NULL,
    first_ms INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    -- JSON: texts by name.
    evidence TEXT NOT NULL,
    UNIQUE (agent_id, report_id)
);
CREATE INDEX anomaly_reports_newest ON anomaly_reports(anomaly_id, id);
-- Which reports of tasks under way may still be answered.
CREATE TABLE anomaly_tasks (
    task_id INTEGER NOT NULL REFERENCES tasks(id),
    report_id TEXT NOT NULL,
    anomaly_id INTEGER NOT NULL REFERENCES anomalies(id) ON DELETE CASCADE,
    -- The revision with which the answer became this report's; grows with each answer to the task. 0: there is none.
    answer_number INTEGER NOT NULL,
    PRIMARY KEY (task_id, report_id)
) WITHOUT ROWID;
CREATE INDEX anomaly_tasks_of_anomaly ON anomaly_tasks(anomaly_id);
CREATE INDEX anomaly_reports_of_job ON anomaly_reports(job_id, anomaly_id);
