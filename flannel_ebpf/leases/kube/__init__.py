"""The Kubernetes edge: leases as node objects carry them, read and written through the API server."""
