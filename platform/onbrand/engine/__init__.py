"""One forward pass, many brands: requests join, step by step, with an adapter per row."""
