"""Releases from their maker to a host: trusted metadata (TUF), releases on disk, the journal of an update.

Nothing here is imported by a daemon that is idle: the client runs in the root updater, one process an update, and the
repository in the control plane and on a release manager's machine.
"""
