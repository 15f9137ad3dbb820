"""Code made from control/api/nyx_v1.proto by `make api`: messages, and the stubs of clients."""
