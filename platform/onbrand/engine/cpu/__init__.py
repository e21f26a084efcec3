"""Faster kernels for CPUs. Each gives the bits of the plain computation, or is not used."""
