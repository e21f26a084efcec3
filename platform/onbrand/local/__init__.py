"""A whole platform on one machine: PostgreSQL, the object store, a private Ray cluster, Serve.

`onbrand up`, the demo and the tests import it. On a cluster, Serve's configuration takes its place.
"""
