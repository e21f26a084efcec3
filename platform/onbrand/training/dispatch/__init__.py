"""Decides which training job runs, and submits it to a provider. Runs beside the internal routes.

The only part of training that imports the database.
"""
