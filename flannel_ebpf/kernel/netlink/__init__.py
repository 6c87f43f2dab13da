"""Routing netlink: links, addresses, routes and devices."""
