"""What can go wrong on a hypervisor.

SourceError
├── HypervisorError             it refused a command, or lacks what is needed
│   ├── HypervisorUnreachable   (retryable)
│   ├── MachineBusy             another job runs on the machine (retryable)
│   ├── GuestNotFrozen          although the freeze is required, or not thawed after a run that died
│   ├── JobLost                 libvirt was killed while a job began, and holds a job that it knows nothing of
│   └── JobAborted              our own watchdog or libvirt ended the job while it was read (retryable)
├── SourceMissing
│   └── MachineMissing
└── SourceChanged
    └── MachineMoved            started, stopped or changed while it was read: to be read anew (retryable)
"""

from __future__ import annotations

from node_agent.errors import SourceChanged, SourceError, SourceMissing


class HypervisorError(SourceError):
    code = "hypervisor"
    default_message = "The hypervisor refused a command."
    default_hint = "Run the platform's connection test: it says what is missing."


class HypervisorUnreachable(HypervisorError):
    code = "hypervisor-unreachable"
    retryable = True
    default_message = "The hypervisor does not answer."
    default_hint = "Check the host, the network and sshd there; the run is tried again."


class MachineBusy(HypervisorError):
    code = "machine-busy"
    retryable = True
    default_message = "Another job runs on the virtual machine."
    default_hint = "Wait until it has ended (virsh domjobinfo), or end it (virsh domjobabort)."


class GuestNotFrozen(HypervisorError):
    code = "guest-not-frozen"
    default_message = "The guest could not be frozen, which the settings require."
    default_hint = "Look into the guest agent's log in the guest, or do not require a freeze."


class JobLost(HypervisorError):
    code = "job-lost"
    default_message = "libvirt was killed while a backup job began: it holds a job that it cannot end any more."
    default_hint = (
        "It is over when the machine stops. While it runs, libvirt's record of the job can be removed on the "
        "hypervisor: docs/platform-kvm.md says how, under “A job that libvirt has lost”."
    )


class JobAborted(HypervisorError):
    code = "job-aborted"
    retryable = True
    default_message = "The hypervisor ended the backup job while it was read."
    default_hint = "Run the backup again; libvirt's and qemu's logs on the hypervisor say more."


class MachineMissing(SourceMissing):
    code = "machine-missing"
    default_message = "The hypervisor has no such virtual machine."
    default_hint = "It was removed or moved to another host: discover the platform again."


class MachineMoved(SourceChanged):
    code = "machine-moved"
    retryable = True
    default_message = "The virtual machine was started or changed while its disks were read."
    default_hint = "Nothing to do: it is read anew as it is now."
