"""The addon: `mitmdump -s addons/kube_tunnel.py`, `mitmweb -s addons/kube_tunnel.py`."""

from kubetunnel.app import KubeTunnel

addons = [KubeTunnel()]
