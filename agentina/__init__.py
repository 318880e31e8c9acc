"""agentina: run fleets of AI coding agents on Linux hosts you own.

The packages and what each may import are described in docs/explanation/architecture.md and held by
tests/unit/test_layers.py. Nothing is re-exported here: importing ``agentina`` must cost nothing.
"""

__version__ = "0.1.0.dev0"
