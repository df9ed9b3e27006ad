"""For all tests."""

from hypothesis import settings

# a loaded machine is no reason to fail: speed has its place in bench/
settings.register_profile("kube-tunnel", deadline=None)
settings.load_profile("kube-tunnel")
