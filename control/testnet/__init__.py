"""A whole network on this machine: real nodes on 127.0.0.1, one signer, one command up and one command down.

Its folder holds everything: the signed directory, a folder a node, and the record of what was started, by process id and
start time. Nothing outside the folder is touched but the ports, and nothing but the recorded processes is ever stopped.
"""
