"""What backups of a machine that died have left on the hypervisor: their jobs, folders and checkpoints, removed."""

from __future__ import annotations

from node_agent.drivers.libvirt import pull, run_folder, tracking
from node_agent.drivers.libvirt.access import BackupRequest
from node_agent.drivers.libvirt.errors import GuestNotFrozen
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm, machine
from node_agent.drivers.libvirt.journal import Journal
from node_agent.drivers.libvirt.tracking import Tracking


def settle(host: Host, request: BackupRequest, journal: Journal) -> tuple[Vm, set[str]]:
    """Remove what runs that died left behind; the machine as it is then, and names that checkpoints had."""
    entry = journal.read()
    vm = machine(host, request.machine)
    own = entry.folder if entry is not None else ""
    died = {own, *run_folder.leftovers(host, request, own)} - {""}
    for path in died:
        run_folder.wait_for_begin(host, path)
        if vm.running:
            pull.abort_job(host, vm, path)
            _thaw(host, vm, path)
        run_folder.remove(host, path)
    wanted = Tracking.of(request.previous.metadata, request) if request.previous is not None else None
    # Where no point names a checkpoint, qemu itself is asked which of ours there are: no image shows them yet. Also
    # after a run that died: a job that libvirt began and gave up leaves a bitmap in qemu that only qemu knows of.
    kept = wanted.checkpoint if wanted is not None else ""
    taken = tracking.drop_strays(host, vm, request, kept, ask_qemu=wanted is None or bool(died))
    journal.clear()
    return vm, {*taken, kept}


def _thaw(host: Host, vm: Vm, path: str) -> None:
    """A guest without an agent was started anew since: nothing is frozen any more."""
    if not run_folder.may_be_frozen(host, path) or not vm.agent:
        return
    result = host.try_virsh("domfsthaw", vm.uuid)
    if result.code:
        raise GuestNotFrozen(
            f"A run that died has left the guest of {vm.name} frozen, and it does not thaw: {result.errors[:300]}",
            hint="Its writes hang. Look at the guest agent in the guest; in the end only a reset of the machine helps.",
        )
