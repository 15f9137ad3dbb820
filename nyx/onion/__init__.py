"""Layers around a cell and the records that build a circuit: what a relay can open, and nothing more."""
