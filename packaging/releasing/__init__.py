"""Builds what is given to hosts: the release tree and the Debian packages. Standard library only.

Run as ``python -m releasing deb`` with packaging/ on the path (``make deb`` does). It needs pip and dpkg-deb.
"""
