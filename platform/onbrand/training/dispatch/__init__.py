"""Decides which training job runs, and submits it to a provider.

The dispatcher runs beside the internal routes; it is the only part of training that imports the database. Drivers and
workers use `tickets`, `submission`, `capacity` and `providers`, which do not.
"""
