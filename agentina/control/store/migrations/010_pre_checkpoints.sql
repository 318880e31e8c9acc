-- Tasks of which somebody wants a checkpoint, until their agent has heard it.
CREATE TABLE checkpoint_wishes (
    task_id INTEGER PRIMARY KEY REFERENCES tasks(id)
);
-- A few among many artifacts: looked through for those that nobody can go on from any more.
CREATE INDEX checkpoints_of_task ON artifacts (task_id) WHERE kind = 'checkpoint';
