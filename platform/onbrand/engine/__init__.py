"""The engine: one forward pass for rows with different adapters. `engine.py` is the entry point.

A request waits in `fair_queue`, gets a slot by `residency`, and its rows are stepped by `model_runner`; `slots` and
`lora_math` add each row's own adapter. It knows no database, no object store, no HTTP and no Ray.
"""
