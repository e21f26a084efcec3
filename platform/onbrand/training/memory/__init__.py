"""Device memory of a run: estimate, savings, quantization, sharding."""
