"""`kube-tunnel run -- CMD`: one program that reaches the cluster's Services, and nothing changed for the others.

The command becomes CMD by exec(3), so that signals, terminal, exit status and process id are CMD's own and nothing
stands between. What CMD needs beside it (a tunnel, with --isolate DNS and listeners) runs in a process that is not its
child, and that ends with it (`companion`).
"""
