"""Ray Serve: one engine per replica, the generator over handles, the ingress, and the applications of these."""
