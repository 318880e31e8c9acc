"""What host and control plane say to each other: data, validation, signatures. Pure: no I/O, no clock.

Rules for everything in this package: structs are frozen and keyword-only; every field added later has a default;
fields a peer does not know are skipped; a sent field never changes its type. docs/reference/protocol.md specifies
the exchange itself.
"""
