"""Runners turn a job's payload into a process to start."""
