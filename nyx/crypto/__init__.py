"""Suites, the link handshake, the key schedule, the replay window and key files: what keys are and what they do."""
