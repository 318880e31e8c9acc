-- How many lines a job's timeline has: the next one is numbered without looking for the last.
ALTER TABLE jobs ADD COLUMN events INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET events = (SELECT coalesce(max(number), 0) FROM events WHERE job_id = jobs.id);
