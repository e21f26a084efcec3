"""The wire contract between the platform and its workers: types only. No database, no torch, no Ray."""
