"""Imports mitmproxy's filters once, without the warnings about former names of pyparsing that they use."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import mitmproxy.addons  # noqa: F401
