"""Executors contain a task's process: start it once, limit it, end it, and leave a result that survives the daemon."""
