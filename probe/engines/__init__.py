"""Who measures the leases of a sweep: threads here, processes on devices, machines of a cluster."""
