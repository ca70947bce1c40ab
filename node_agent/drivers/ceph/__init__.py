"""Ceph RBD: images of a cluster as disks to protect, and back. docs/platform-ceph.md says how it works."""
