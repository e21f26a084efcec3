"""Bytes: where objects live, the store that is bound to one brand, signed links, and checks of what comes in."""
