"""`kube-tunnel netsetup`: the same as `python -m netsetup`."""

from netsetup.cli import command

__all__ = ["command"]
