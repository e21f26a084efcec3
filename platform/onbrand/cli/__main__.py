"""`python -m onbrand.cli`."""

from onbrand.cli import main

main()
