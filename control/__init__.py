"""The control plane: what a person or a program asks of a running node, and what it answers."""
