"""Driver *libvirt*: virtual machines of a KVM host, protected from the hypervisor over SSH while they run.

Nothing is installed there: libvirt, qemu and sshd are enough. Commands go through paramiko (:mod:`.ssh`,
:mod:`.host`), data through a unix socket that the OpenSSH client forwards (:mod:`.tunnel`).

A running machine is read from a pull job of libvirt (:mod:`.pull`): all disks at one instant, and with a checkpoint
(:mod:`.tracking`) only what changed since the point before. A stopped one is read beside the lock of its images
(:mod:`.stopped`), so that it can always be started. What a run makes on the hypervisor is written down before it is
made (:mod:`.journal`), bears our mark, and is watched there by a script that ends it when the node dies
(:mod:`.watchdog`). The way back is :mod:`.import_`.
"""

from node_agent.drivers.libvirt.access import BackupRequest, HostAccess, ImportRequest
from node_agent.drivers.libvirt.driver import LibvirtHost

__all__ = ["BackupRequest", "HostAccess", "ImportRequest", "LibvirtHost"]
