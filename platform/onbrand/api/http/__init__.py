"""Everything between a connection and a route: limits of bodies, rates and connections, turns, CORS, request ids.

ASGI middleware and its parts, and the limits that routes apply (streams, refusals). It calls no service, except to
authenticate the caller.
"""
