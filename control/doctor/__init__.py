"""What `nyxctl doctor` looks at: the machine (machine.py), the node (node.py), its proxy as applications see it (proxy.py)."""
