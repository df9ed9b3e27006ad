"""`kube-tunnel run -- CMD`: runs a program so that it reaches the cluster's Services."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

DEFAULT_TUNNELS = (("127.0.0.1", 8080), ("127.0.0.1", 80))  # a user's, and root's


def _tunnel(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{text!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


@click.command(
    "run",
    short_help="Run a program so that it reaches the cluster's Services.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("command_line", metavar="[--] CMD [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--port", "-port", type=click.IntRange(1, 65535), help="Port of the tunnel that runs on this machine.")
@click.option("--proxy", "-proxy", callback=_tunnel, metavar="HOST:PORT", help="Address of the tunnel that runs.")
@click.option("--kubeconfig", "-kubeconfig", metavar="FILE", help="For a tunnel of its own: path of the kubeconfig.")
@click.option("--context", "-context", metavar="NAME", help="The same: context of the kubeconfig.")
@click.option("-n", "--namespace", "-namespace", metavar="NAME", help="The same: namespace of short names.")
@click.option("--config", "-config", metavar="FILE", help="The same: the YAML file of settings.")
@click.option("--demo", "-demo", is_flag=True, help="A tunnel of its own into a simulated cluster.")
@click.option(
    "--direct", "-direct", multiple=True, metavar="HOST,…", help="Not through the tunnel (added to no_proxy)."
)
@click.option("--trust-ca", "-trust-ca", is_flag=True, help="Have CMD trust the tunnel's CA, beside the usual ones.")
@click.option(
    "--confdir",
    "-confdir",
    type=click.Path(path_type=Path),
    default="~/.mitmproxy",
    show_default=True,
    help="The CA's.",
)
@click.option(
    "--isolate", "-isolate", is_flag=True, help="A network of CMD's own: names resolve, every port works. Linux."
)
@click.option("-v", "--verbose", "-verbose", is_flag=True, help="Tell what its own tunnel does, on standard error.")
@click.option("-q", "--quiet", "-quiet", is_flag=True, help="Say nothing.")
def command(command_line: tuple[str, ...], **given: Any) -> None:
    """Run CMD so that its requests reach the cluster's Services by their names.

    Proxy variables lead it to the tunnel that runs at 127.0.0.1, port 8080 or 80 (--port, --proxy), or, where none runs
    or a cluster is named here, to one of its own that ends with it. Programs that know no proxy need --isolate: there
    CMD has a network of its own, in which nothing but loopback and the Services is, with every TCP port of theirs.

    CMD takes the place of this process: signals, terminal and exit status are its own. 127: it was not found, 126: it
    cannot be executed, 125: no tunnel could be had.
    """
    from kubetunnel.run_command.start import OWN_FAILURE, CannotRun, Wanted, run

    if given["proxy"] and given["port"]:
        raise click.UsageError("--proxy names a port already: leave --port out.")
    names = ("kubeconfig", "context", "namespace", "config")
    assignments = [f"kube_{name}={given[name]}" for name in names if given[name]]
    assignments += ["kube_demo=true"] if given["demo"] else []
    chosen = given["proxy"] or ((DEFAULT_TUNNELS[0][0], given["port"]) if given["port"] else None)
    if chosen and (assignments or given["isolate"]):
        raise click.UsageError("A tunnel that runs has its cluster; a cluster or --isolate asks for one of its own.")
    confdir: Path = given["confdir"].expanduser()
    try:
        run(
            Wanted(
                command_line,
                chosen or _running(),
                must_run=chosen is not None,
                must_start=bool(assignments),
                assignments=assignments,
                confdir=confdir,
                direct=[host.strip() for part in given["direct"] for host in part.split(",") if host.strip()],
                bundle=_bundle(confdir) if given["trust_ca"] else None,
                isolated=given["isolate"],
                verbose=given["verbose"],
                quiet=given["quiet"],
            )
        )
    except CannotRun as e:
        click.echo(f"kube-tunnel run: {e}", err=True)
        sys.exit(e.status)
    except (OSError, ValueError) as e:
        click.echo(f"kube-tunnel run: {e}", err=True)
        sys.exit(OWN_FAILURE)


def _running() -> tuple[str, int]:
    """Where a tunnel answers, else where one would."""
    from kubetunnel.running_tunnel import tunnel_answers

    return next((each for each in DEFAULT_TUNNELS if tunnel_answers(*each)), DEFAULT_TUNNELS[0])


def _bundle(confdir: Path) -> Path:
    from kubetunnel.run_command.bundle import write_bundle

    return write_bundle(confdir, os.environ)
