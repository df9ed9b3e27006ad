"""`kube-tunnel doctor`: what keeps the tunnel from working on this machine, and the command that mends it."""
