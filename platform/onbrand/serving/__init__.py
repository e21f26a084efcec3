"""Ray Serve: an engine per replica, the generator over handles, the ingress, and the applications. Ray lives here and in training."""
