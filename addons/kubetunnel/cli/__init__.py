"""The `kube-tunnel` command: one file a subcommand, each with a `command`, imported when it is asked for."""
