"""PostgreSQL: the schema with its row policies, logins, signed claims, transactions. See README.md.

`onbrand.storage` stores bytes. Services and the CLI's commands for operators import this package; engines and training
workers never do.
"""
