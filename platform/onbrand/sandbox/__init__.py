"""Reads files from outside (images, archives, documents, weights) in child processes with almost no rights.

`checker` is the entry point; `worker` runs in the child. Nothing here writes to the object store or the database.
"""
