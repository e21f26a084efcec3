"""The object store: a local folder or S3, bound to one brand; keys, signed links, session credentials.

`services` writes the rows about objects. Files from outside are read by `onbrand.sandbox` before they come here.
"""
