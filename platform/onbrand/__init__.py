"""Onbrand: private image models for brands, many brands on shared GPUs, nothing of one ever reaching another."""

__version__ = "0.1.0"
