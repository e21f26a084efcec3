"""Model families: one object each. Training uses its `loss`, inference its `denoise`.

`spec` is free of torch; import `onbrand.families.family` for the models themselves.
"""
