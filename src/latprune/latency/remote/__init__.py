"""Remote: devices that are reached through a cluster (racks), or through a file that is carried there (kits)."""
