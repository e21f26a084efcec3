"""`onbrand demo`: uploads, trains, publishes and generates for two brands through the public API."""

from onbrand.demo.run import run_demo, shortcomings

__all__ = ["run_demo", "shortcomings"]
