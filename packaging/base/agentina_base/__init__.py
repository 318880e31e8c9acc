"""The base: what a host needs before, and in spite of, any release. Installed by the package in /usr/lib/agentina.

Standard library only, and nothing of the package ``agentina``: a broken release must not break what chooses releases.
It is never updated but by the package manager.
"""
