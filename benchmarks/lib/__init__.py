"""Parts that several benchmarks share. Nothing of the tests."""
