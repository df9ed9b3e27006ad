"""What the view "Kubernetes" takes from a flow alone, as of a recording."""

from __future__ import annotations

from mitmproxy.contentviews import Metadata
from mitmproxy.test import tflow

from kubetunnel.core.settings import Settings
from kubetunnel.inspect.kubernetes_view import KubernetesView
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.shown import REFUSED


def test_a_pod_that_uses_our_header_refused_nothing() -> None:
    view = KubernetesView(Clusters(Settings()))
    flow = tflow.tflow(resp=True)
    assert flow.response
    flow.response.headers["X-Kube-Tunnel-Error"] = "Timeout"
    assert view.prettify(b"", Metadata(flow=flow)) == "# This flow did not go to a cluster."
    flow.marked = REFUSED
    assert view.prettify(b"", Metadata(flow=flow)) == "refused: Timeout\n"
