"""The tasks that an instance holds, from their acceptance to the last report."""
