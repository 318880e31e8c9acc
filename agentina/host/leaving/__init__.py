"""How a host learns that it will be gone: the cloud's notices, and its own shutdown."""
