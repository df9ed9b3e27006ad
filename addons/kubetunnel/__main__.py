"""`kube-tunnel [mitmdump's options]`: mitmdump with the addon on your cluster, else a simulated one.

`kube-tunnel ca [CONFDIR]`: the certificate authority. The command with all its settings is still to come.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Says which cluster it is going to be, then runs mitmdump in this process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["ca"]:
        return _describe_ca(arguments[1:])
    from mitmproxy.tools.main import mitmdump  # late: it takes half a second

    chosen = next((a for a in arguments if "kube_kubeconfig=" in a or "kube_demo=" in a), None)
    kubeconfig = current_kubeconfig()
    if chosen:
        print(f"Using the cluster of your option {chosen}", flush=True)
    elif kubeconfig:
        print(f"Using the current cluster: {kubeconfig}", flush=True)
    else:
        print("No kubeconfig found: using a simulated cluster (the demo).", flush=True)
        arguments = ["--set", "kube_demo=true", *arguments]
    mitmdump(["-s", str(addon_path()), *arguments])
    return 0


def _describe_ca(arguments: list[str]) -> int:
    """Where the certificate authority is (made where there is none), and how to trust it."""
    from kubetunnel.ca import describe

    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print("usage: kube-tunnel ca [CONFDIR]    (mitmproxy's confdir, ~/.mitmproxy by default)")
        return 0 if arguments[0] in ("-h", "--help") else 2
    try:
        print(describe(Path(arguments[0] if arguments else "~/.mitmproxy").expanduser()))
    except (OSError, ValueError) as e:
        print(f"kube-tunnel ca: {e}", file=sys.stderr)
        return 1
    return 0


def current_kubeconfig() -> str | None:
    """Where kubectl would take its cluster from, for display; None where there is nothing."""
    if listed := os.environ.get("KUBECONFIG"):
        # named by the user, so a missing file is an error to tell of and no reason for the demo
        return listed
    default = Path.home() / ".kube" / "config"
    if default.exists():
        return str(default)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "the service account of this pod"
    return None


def addon_path() -> Path:
    """The addon script: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "kube_tunnel.py"
    return beside if beside.exists() else package / "kube_tunnel.py"


if __name__ == "__main__":
    sys.exit(main())
