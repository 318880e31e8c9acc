"""Clients: the agent's link to the control plane (async), the operator API and the local socket (both blocking)."""
