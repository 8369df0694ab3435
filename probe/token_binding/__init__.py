"""Which earlier tokens each layer holds: by probes, by attention, and by derivatives."""
