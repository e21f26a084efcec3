"""`python -m onbrand.cli`."""

from onbrand.cli.main import main

main()
