-- Budgets of organizations and agents for each day (UTC). NULL: no limit of that kind. Money is in nano-dollars.
CREATE TABLE budgets (
    -- 'organization' or 'agent', and the row id of it.
    scope TEXT NOT NULL,
    subject_id INTEGER NOT NULL,
    tokens INTEGER,
    cost_nano INTEGER,
    tool_calls INTEGER,
    on_exhausted TEXT NOT NULL,
    -- What was added for one day only.
    extra_day TEXT NOT NULL DEFAULT '',
    extra_tokens INTEGER NOT NULL DEFAULT 0,
    extra_cost_nano INTEGER NOT NULL DEFAULT 0,
    extra_tool_calls INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, subject_id)
) WITHOUT ROWID;

-- What each agent may use of its organization's budget on a day, and what it said it had used
-- (agentina/control/budgets/sharing.py).
CREATE TABLE shares (
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    day TEXT NOT NULL,
    agent_id INTEGER NOT NULL REFERENCES agents(id),
    -- Of the newest word of the agent.
    session INTEGER NOT NULL,
    number INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    spent_tokens INTEGER NOT NULL,
    spent_cost_nano INTEGER NOT NULL,
    spent_tool_calls INTEGER NOT NULL,
    PRIMARY KEY (organization_id, day, agent_id)
) WITHOUT ROWID;

-- 1: an operator changed the budget in the specification after the job was submitted.
ALTER TABLE jobs ADD COLUMN budget_changed INTEGER NOT NULL DEFAULT 0;
