-- Rollouts of releases: what was asked for, how far each is, and each agent's part (agentina/control/rollouts/model.py).
CREATE TABLE rollouts (
    id INTEGER PRIMARY KEY,
    public_id TEXT NOT NULL UNIQUE,
    -- JSON: what was asked for, and of which agents. They never change.
    plan TEXT NOT NULL,
    selection TEXT NOT NULL,
    state TEXT NOT NULL,
    stage INTEGER NOT NULL,
    phase TEXT NOT NULL,
    watched_seconds REAL NOT NULL,
    reason TEXT NOT NULL,
    gate TEXT NOT NULL,
    superseded INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    -- Grows with every change: a decision made from an older one is not stored.
    revision INTEGER NOT NULL DEFAULT 1,
    -- Lines of the timeline.
    lines INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE rollout_members (
    rollout_id INTEGER NOT NULL REFERENCES rollouts(id),
    agent_id INTEGER NOT NULL REFERENCES agents(id),
    standing TEXT NOT NULL,
    stage INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    not_before_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    previous TEXT NOT NULL,
    skipped INTEGER NOT NULL,
    -- JSON: figures to compare with.
    mark TEXT,
    mark_ms INTEGER NOT NULL,
    past TEXT NOT NULL,
    PRIMARY KEY (rollout_id, agent_id)
) WITHOUT ROWID;
-- Agents that are to leave a version, however long ago it was halted.
CREATE INDEX rollout_members_returning ON rollout_members(rollout_id) WHERE standing = 'rolling-back';

CREATE TABLE rollout_lines (
    rollout_id INTEGER NOT NULL REFERENCES rollouts(id),
    number INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (rollout_id, number)
) WITHOUT ROWID;

-- What the tasks of each agent came to (JSON, agentina/control/rollouts/figures.py).
CREATE TABLE ledgers (
    agent_id INTEGER PRIMARY KEY REFERENCES agents(id),
    content TEXT NOT NULL
);

-- The only version an operator lets the agent run; empty: any.
ALTER TABLE agents ADD COLUMN pinned TEXT NOT NULL DEFAULT '';
