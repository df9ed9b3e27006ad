"""kube-tunnel: a cluster's Services by their DNS names, through mitmproxy. Nothing heavy is imported here."""

__version__ = "0.1.0"
