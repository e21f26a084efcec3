"""Tasks that run beside the API: generations, their recovery and previews, the clean-up of uploads.

Only `api` and `app` start them. Transactions are short, and none outlives its process.
"""
