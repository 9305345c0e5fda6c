"""Adapters: small trained additions to a frozen model, written as files that the WebUI applies."""
