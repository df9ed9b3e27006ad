"""`python -m kubetunnel`: the command `kube-tunnel`."""

from kubetunnel.cli.main import main

if __name__ == "__main__":
    main(prog_name="kube-tunnel")
