"""Other job systems, installed from public packages and driven with the same jobs."""
