"""Model families: one object each, entered by training through `loss` and by inference through `denoise`.

`spec` is free of torch; import `onbrand.families.family` for the models themselves.
"""
