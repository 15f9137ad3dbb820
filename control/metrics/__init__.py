"""Prometheus metrics of one node: what they are called, where they come from, and the small server that tells them."""
