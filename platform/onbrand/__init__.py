"""Onbrand: private image models for many brands on shared GPUs; no brand's data reaches another brand."""

__version__ = "0.1.0"
