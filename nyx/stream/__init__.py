"""Connections and streams inside a circuit: frames, acknowledgement, loss, congestion, flow control."""
