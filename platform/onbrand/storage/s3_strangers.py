"""A client that knows nothing but an address: what is tried with presigned links is tried as a stranger would."""

from __future__ import annotations

import ssl

import botocore.session
import httpx

_TIMEOUT_SECONDS = 20.0


def stranger() -> httpx.Client:
    """Without credentials, and trusting the same authorities as botocore does (`AWS_CA_BUNDLE`)."""
    bundle = botocore.session.Session().get_config_variable("ca_bundle")
    trusted = ssl.create_default_context(cafile=bundle) if bundle else True
    return httpx.Client(verify=trusted, timeout=_TIMEOUT_SECONDS, follow_redirects=False)
