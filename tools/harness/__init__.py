"""Parts that tests and benchmarks share: platforms, clients of them, files and adapters for them."""
