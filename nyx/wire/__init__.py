"""Bytes on the wire and the values they stand for; nothing else."""
