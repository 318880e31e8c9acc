"""The rules of rollouts: who gets a release next, whether it does well, and when everybody goes back. Pure."""
