"""`onbrand demo`: everything once, for two brands, through the same doors as any user."""

from onbrand.demo.run import run_demo, shortcomings

__all__ = ["run_demo", "shortcomings"]
