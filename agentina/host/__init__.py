"""The host's side: the daemon and what installs, checks and shows it."""
