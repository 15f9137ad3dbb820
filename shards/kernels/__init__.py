"""What a worker does to a batch: compiles and arranges the array functions that live with their idea in nyx."""
