"""The kubeconfig, the API server behind it, who we are there, and whether its clock is ours."""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from kubetunnel.cluster.kubeconfig import Kubeconfig
from kubetunnel.core.errors import KubeTunnelError, Unauthenticated
from kubetunnel.doctor.api_request import ApiAnswer
from kubetunnel.doctor.verdict import Verdict, fail, ok, warn

# a token is refused for less than its issuer's leeway (mostly 60 s or none); Kerberos gives up at 5 min (RFC 4120 1.6)
CLOCK_OK_S = 10.0
CLOCK_WARN_S = 300.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which cluster was asked for; None each for kubectl's default."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


def judge_kubeconfig(found: Kubeconfig, modes: dict[Path, int]) -> list[Verdict]:
    """A kubeconfig that could be read.

    Args:
        modes: of the files that it was read from, by path.
    """
    user = found.user.name or "nobody"
    files = ", ".join(map(str, modes))
    text = f"context {found.context}, user {user}, namespace {found.namespace}, server {found.cluster.server} ({files})"
    verdicts = [ok("kubeconfig", text)]
    open_files = [path for path, mode in modes.items() if mode & (stat.S_IRWXG | stat.S_IRWXO)]
    if open_files:
        names = " ".join(map(str, open_files))
        verdicts.append(warn("kubeconfig mode", f"others on this machine may read {names}", f"chmod go= {names}"))
    if found.cluster.insecure:
        verdicts.append(
            warn(
                "kubeconfig TLS",
                "insecure-skip-tls-verify: anybody on the way can pose as the API server, and gets your credentials",
                "kubectl config set-cluster NAME --insecure-skip-tls-verify=false --certificate-authority=FILE",
            )
        )
    return verdicts


def judge_kubeconfig_error(error: KubeTunnelError) -> Verdict:
    mend = error.command or "kubectl config view"
    if error.detail.startswith("No kubeconfig"):
        mend = "kube-tunnel --demo    (a simulated cluster; else: export KUBECONFIG=FILE)"
    return fail("kubeconfig", error.detail, mend)


def judge_api_server(server: str, answer: ApiAnswer) -> Verdict:
    """The answer to GET /version."""
    version = answer.json().get("gitVersion")
    took_ms = (answer.answered_at_s - answer.asked_at_s) * 1000
    if answer.status == 200 and isinstance(version, str):
        return ok("API server", f"{server} is Kubernetes {version}, answered in {took_ms:.0f} ms")
    if answer.status in (401, 403):
        # some close /version to all; that they could say so is what counts here
        return ok("API server", f"{server} answered in {took_ms:.0f} ms (its version is not told to this user)")
    return fail(
        "API server",
        f"{server} answers /version with status {answer.status}: is that a Kubernetes API server?",
        f"curl -vk {server}/version",
    )


def judge_api_server_error(error: KubeTunnelError) -> Verdict:
    check = "credentials" if isinstance(error, Unauthenticated) else "API server"
    return fail(check, error.detail, error.command or "kubectl cluster-info")


def judge_identity(user: str, whoami: ApiAnswer, access_review: ApiAnswer) -> Verdict:
    """Whether the API server takes our credentials.

    Args:
        user: the kubeconfig's name for us.
        whoami: of a SelfSubjectReview, which servers before 1.28 have not got.
        access_review: of a SelfSubjectAccessReview, which every authenticated user may make.
    """
    if name := username(whoami):
        return ok("credentials", f"the API server knows {user} as {name}")
    if access_review.status == 201:
        return ok("credentials", f"the API server takes those of {user}")
    return fail(
        "credentials",
        f"the API server takes none of {user}: status {access_review.status}, "
        f"{access_review.json().get('message', 'no message')}",
        "kubectl auth whoami",
    )


def username(whoami: ApiAnswer) -> str:
    """Who we are, by the answer to a SelfSubjectReview; "" where the server does not say."""
    if whoami.status != 201:
        return ""
    return str(((whoami.json().get("status") or {}).get("userInfo") or {}).get("username", ""))


def judge_clock(answer: ApiAnswer) -> Verdict:
    """This machine's clock against the answer's Date, which has whole seconds (RFC 9110 6.6.1)."""
    try:
        served_at_s = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except ValueError:
        return ok("clock", "the API server does not tell its time")
    # the head was made somewhere between; a clock that lies within shows no skew
    ahead_s = answer.asked_at_s - (served_at_s + 1)
    behind_s = served_at_s - answer.answered_at_s
    skew_s = max(ahead_s, behind_s, 0.0)
    if skew_s <= CLOCK_OK_S:
        return ok("clock", "that of the API server, within seconds")
    direction = "ahead of" if ahead_s > 0 else "behind"
    text = f"this machine is {skew_s:.0f} s {direction} the API server: tokens and certificates may be refused"
    mend = "sudo sntp -sS time.apple.com" if sys.platform == "darwin" else "sudo timedatectl set-ntp true"
    return (warn if skew_s <= CLOCK_WARN_S else fail)("clock", text, mend)
