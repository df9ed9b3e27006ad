"""Why the machine's network could not be set up or put back.

KubeTunnelError
└── NetsetupError
    ├── RootNeededError       the user may not change the network
    ├── BadWishError          what was asked for contradicts itself
    ├── RangeTakenError       every range (or the address asked for) is somebody else's: the detail names whose
    ├── LinkTakenError        a link of that name is there, and not ours
    ├── AnotherInstanceError  another netsetup is at work
    ├── SetUpOtherwiseError   `netsetup up` has set it up already, with other options
    ├── StateError            the state file is broken, or not to be trusted
    └── StepError             the kernel or a program refused a step
"""

from __future__ import annotations

from kubetunnel.core.errors import KubeTunnelError


class NetsetupError(KubeTunnelError):
    """The network was not set up, or not put back in full."""

    title = "The network could not be set up"


class RootNeededError(NetsetupError):
    """Links, routes, redirections and the resolver's files are root's; the command is the same with sudo."""


class BadWishError(NetsetupError):
    """An option, or two of them together, make no sense."""


class RangeTakenError(NetsetupError):
    """An address or a route of somebody else lies in the range; the detail names it."""


class LinkTakenError(NetsetupError):
    """A link with the wanted name exists that netsetup has not made."""


class AnotherInstanceError(NetsetupError):
    """Another `netsetup up` or `down`, or a `kube-tunnel --virtual`, holds the state file."""


class SetUpOtherwiseError(NetsetupError):
    """The network is set up, not as a `kube-tunnel --virtual` wants it, and is not its to change."""


class StateError(NetsetupError):
    """The state file cannot be read, or somebody other than root could have written it."""


class StepError(NetsetupError):
    """The kernel or a program refused; the detail has its words."""
