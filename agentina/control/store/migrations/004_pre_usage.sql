-- What tasks used of models, by day (UTC) and model: totals from the task's start, so that a later one replaces an
-- earlier one (agentina/protocol/budgets.py). Money is in nano-dollars.
CREATE TABLE usage (
    task_id INTEGER NOT NULL REFERENCES tasks(id),
    day TEXT NOT NULL,
    model TEXT NOT NULL,
    -- Whose budgets it counts against.
    organization_id INTEGER NOT NULL REFERENCES organizations(id),
    agent_id INTEGER NOT NULL REFERENCES agents(id),
    calls INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    input INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    cache_write INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    cost_nano INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    PRIMARY KEY (task_id, day, model)
) WITHOUT ROWID;
CREATE INDEX usage_by_day ON usage(day, organization_id, agent_id);
