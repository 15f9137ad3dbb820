"""The gRPC API of a node, nyx.v1: see docs/api.md and nyx_v1.proto."""
