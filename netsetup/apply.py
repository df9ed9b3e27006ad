"""Each step done, undone, and looked for: the one place that knows which module does what.

Undoing is idempotent, and touches only what is ours by its name, MAC address, table or line; what is gone already, or
somebody else's by now, is left and told of.
"""

from __future__ import annotations

from typing import assert_never

from netsetup import macos, redirect, resolv_conf_link, resolver
from netsetup.operations import (
    AddAddress,
    AddAlias,
    AddLink,
    AddRoute,
    EditResolvConf,
    LinkResolvConf,
    MakeDirectory,
    Operation,
    Redirect,
    SetLinkResolver,
    WriteFile,
)

GONE = "was gone already"


def apply(step: Operation) -> None:
    """Does a step.

    Raises:
        StepError: the kernel or a program refuses.
    """
    match step:
        case AddLink() | AddAddress() | AddRoute():
            _apply_to_links(step)
        case AddAlias():
            macos.add_alias(step)
        case Redirect():
            redirect.add_redirect(step)
        case SetLinkResolver():
            resolver.set_link_resolver(step)
        case MakeDirectory():
            resolver.make_directory(step)
        case WriteFile():
            resolver.write_file(step)
        case EditResolvConf():
            resolver.edit_resolv_conf(step)
        case LinkResolvConf():
            resolv_conf_link.link_resolv_conf(step)
        case _:
            assert_never(step)


def undo(step: Operation) -> str:
    """Undoes a step, done in full, in part or not at all; says in a line what it did.

    Raises:
        StepError: the kernel or a program refuses.
    """
    match step:
        case AddLink():
            from netsetup import links

            return f"link {step.name} {_removed(links.remove_link(step))}"
        case AddAddress():
            from netsetup import links

            return f"address {step.address} of {step.link} {_removed(links.remove_address(step))}"
        case AddRoute():
            from netsetup import links

            return f"route {step.prefix} to {step.link} {_removed(links.remove_route(step))}"
        case AddAlias():
            return f"alias {step.address} of lo0 {_removed(macos.remove_alias(step))}"
        case Redirect():
            return f"redirection of {', '.join(step.ranges)} {_removed(redirect.remove_redirect(step))}"
        case SetLinkResolver():
            return f"systemd-resolved's setting of {step.link} {resolver.unset_link_resolver(step)}"
        case MakeDirectory():
            removed = "removed" if resolver.remove_directory(step) else "left: it is gone already, or not empty"
            return f"directory {step.path} {removed}"
        case WriteFile():
            return f"{step.path} {resolver.put_file_back(step)}"
        case EditResolvConf():
            return f"{step.path} {resolver.put_resolv_conf_back(step)}"
        case LinkResolvConf():
            return f"link {step.path} {resolv_conf_link.put_link_back(step)}"
        case _:
            assert_never(step)


def present(step: Operation) -> bool:
    """Whether what the step makes is there now.

    Raises:
        StepError: it cannot be told (nft shows its tables to root alone).
    """
    match step:
        case AddLink() | AddAddress() | AddRoute():
            return _is_in_links(step)
        case AddAlias():
            return macos.has_alias(step)
        case Redirect():
            return redirect.has_redirect(step)
        case SetLinkResolver():
            return resolver.has_link_resolver(step)
        case MakeDirectory():
            return resolver.has_directory(step)
        case WriteFile():
            return resolver.has_file(step)
        case EditResolvConf():
            return resolver.has_resolv_conf(step)
        case LinkResolvConf():
            return resolv_conf_link.has_link(step)
        case _:
            assert_never(step)


def _apply_to_links(step: AddLink | AddAddress | AddRoute) -> None:
    from netsetup import links  # pyroute2 is there on Linux alone

    match step:
        case AddLink():
            links.add_link(step)
        case AddAddress():
            links.add_address(step)
        case AddRoute():
            links.add_route(step)


def _is_in_links(step: AddLink | AddAddress | AddRoute) -> bool:
    from netsetup import links

    found = {link.name: link for link in links.find_links()}
    match step:
        case AddLink():
            return step.name in found and found[step.name].mac == step.mac
        case AddAddress():
            return step.link in found and step.address in map(str, found[step.link].addresses)
        case AddRoute():
            return any(route.link == step.link and str(route.prefix) == step.prefix for route in links.find_routes())


def _removed(removed: bool) -> str:
    return "removed" if removed else GONE
