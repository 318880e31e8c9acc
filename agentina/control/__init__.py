"""The control plane: API, services, store and background duties."""
