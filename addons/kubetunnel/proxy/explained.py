"""Failures in words that help. Needs no mitmproxy: local ports and health checks want them, too."""

from __future__ import annotations

from kubetunnel.core.errors import KubeTunnelError, UpstreamProtocol

_SHOWN_BY = {
    "ConnectionRefused": "{kubectl} -n {namespace} get pod {pod} -o wide",
    "UpstreamReset": "{kubectl} -n {namespace} logs {pod} --all-containers --tail=20",
    "UpstreamProtocol": "{kubectl} -n {namespace} logs {pod} --all-containers --tail=20",
    "Timeout": "{kubectl} -n {namespace} logs {pod} --all-containers --tail=20",
}


def explain(error: KubeTunnelError, *, kubectl: str, namespace: str, pod: str) -> None:
    """Gives a refusal that is about this pod the command that shows it, where it has none or a less exact one.

    Args:
        kubectl: with the flags for kubeconfig and context, as `ClusterAccess.kubectl` has it.
    """
    shown_by = _SHOWN_BY.get(error.reason)
    if error.command is None and shown_by is not None:
        error.command = shown_by.format(kubectl=kubectl, namespace=namespace, pod=pod)
    error.aim(kubectl)  # `forward/` knows of no context


def own_failure(exception: Exception) -> KubeTunnelError:
    """What to tell a client when the tunnel itself broke; the log has the rest."""
    return UpstreamProtocol(f"The tunnel itself failed ({type(exception).__name__}); its log says more.")
