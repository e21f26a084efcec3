"""Ray Serve: an engine per replica, the generator over handles, the ingress, the applications that hold them."""
