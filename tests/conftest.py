"""For all tests."""

import os
import tempfile

from hypothesis import settings

# a loaded machine is no reason to fail: speed has its place in bench/
settings.register_profile("kube-tunnel", deadline=None)
settings.load_profile("kube-tunnel")

# the settings of who runs the tests are none of theirs
for _name in [name for name in os.environ if name.startswith("KTUN_") or name == "LOG_LEVEL"]:
    del os.environ[_name]
_no_settings = tempfile.TemporaryDirectory(prefix="kube-tunnel-tests-")
os.environ["XDG_CONFIG_HOME"] = _no_settings.name
