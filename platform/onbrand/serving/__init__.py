"""Ray Serve: one engine per replica, the generator over handles, the ingress, and the applications of these.

`build` is what Serve's configuration names. An engine's replica imports no database; `deployments` (the two HTTP
deployments) does.
"""
