"""The egress gateway: a task's one way out. A process of its own, started by the daemon for the first task that asks.

docs/explanation/gateway.md has the life of a request, its states, and what is counted when. Rules are pure
(:mod:`rules`, :mod:`requests`, :mod:`budgets`, :mod:`usage`, :mod:`prices`); thin modules act on them.
"""
