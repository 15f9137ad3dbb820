"""Attacks on Nyx, a module each: what was done, what came of it, and the bound it is held against."""
