"""Rows: PostgreSQL, the wall between brands, and the doors through it. Bytes are in `onbrand.storage`."""
