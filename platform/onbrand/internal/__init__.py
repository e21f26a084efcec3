"""The wire contract between the platform and its workers: types of training, generations and logs, and the client.

Platform and workers both import it. No database, no torch, no Ray.
"""
