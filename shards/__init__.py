"""The data plane: processes, shared memory and sockets, and what a worker does to a batch of packets."""
