"""Object storage: backends, stores bound to one brand, signed links, and checks of incoming files."""
