"""HTTP routes, one module per resource. They authorize the caller, call `onbrand.services` and return the result."""
