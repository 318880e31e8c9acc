"""Measurements of speed and size against peers and limits, in one run: ``make bench``."""
