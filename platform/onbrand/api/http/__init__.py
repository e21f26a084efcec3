"""Everything between a connection and a route: limits of bodies, rates and connections, turns, CORS, request ids.

ASGI middleware and its parts. It knows no resource and no brand, except the caller that `early_authentication` finds.
"""
