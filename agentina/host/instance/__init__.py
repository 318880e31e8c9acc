"""What one instance on a host is and has: settings, identity, policy, session, outbox, log, and its preconditions."""
