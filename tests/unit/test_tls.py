"""What TLS the bridge speaks to a broker."""

from __future__ import annotations

import ssl

from bridge.config import Tls
from bridge.mqtt import _tls_context


def test_nothing_older_than_tls_1_2_is_spoken() -> None:
    """Older versions are broken: who is on the line would read the broker's password."""
    for tls in (Tls(), Tls(dangerously_accept_any_certificate=True)):
        context = _tls_context(tls)
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.maximum_version in (ssl.TLSVersion.MAXIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_3)
        assert not [one["name"] for one in context.get_ciphers() if one["strength_bits"] < 128]
    assert _tls_context(Tls()).verify_mode is ssl.CERT_REQUIRED
    assert _tls_context(Tls()).check_hostname
