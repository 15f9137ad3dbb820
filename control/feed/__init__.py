"""The monitoring feed: what a node publishes over ZeroMQ for programs that watch it."""
