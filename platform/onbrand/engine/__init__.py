"""The inference engine: continuous batching of many brands' requests, with one adapter per row."""
