"""A host's other releases: offers, orders, trials, and the updater, which is root's."""
