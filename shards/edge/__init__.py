"""Where bytes enter and leave Nyx: the local proxy and the sockets an exit opens."""
