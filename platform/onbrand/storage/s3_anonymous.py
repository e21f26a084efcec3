"""A client without credentials, for trying presigned links as an outsider would."""

from __future__ import annotations

import ssl

import botocore.session
import httpx

_TIMEOUT_SECONDS = 20.0


def stranger() -> httpx.Client:
    """An HTTP client without credentials that trusts the same authorities as botocore (`AWS_CA_BUNDLE`)."""
    bundle = botocore.session.Session().get_config_variable("ca_bundle")
    trusted = ssl.create_default_context(cafile=bundle) if bundle else True
    return httpx.Client(verify=trusted, timeout=_TIMEOUT_SECONDS, follow_redirects=False)
