"""The channel between two neighbours: sessions, packet numbers, retransmission over one hop, identifiers of circuits."""
