"""Which relays a circuit goes through: weights, diversity, guards."""
