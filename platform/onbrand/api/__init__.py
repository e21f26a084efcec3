"""HTTP routes, one module per resource. They authorize the caller, call `onbrand.services` and return the result.

`http/` is what happens before a route: limits, CORS, request ids. Only `app` and `serving` import this package. It
never imports torch, Ray or the engine, and contains no SQL.
"""
