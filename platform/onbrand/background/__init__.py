"""Tasks that run beside the API: generations, their recovery and previews, the clean-up of uploads.

Only `api` and `app` start them. Each opens its own short transactions; none outlives its process.
"""
