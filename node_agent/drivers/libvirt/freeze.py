"""The instant of a backup: freeze the guest if asked, begin the job, thaw; in one script on the hypervisor.

One script, so that the guest is frozen for no longer than the hypervisor needs, whatever the network does. Before the
freeze a file is laid down for the watchdog, which thaws when its time is over; the script takes it away after its own
thaw. Whether the guest is still frozen is asked after the job has begun: Windows thaws itself after ten seconds.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from node_agent.drivers.base import Consistency, Freeze
from node_agent.drivers.libvirt.access import BackupRequest
from node_agent.drivers.libvirt.errors import GuestNotFrozen
from node_agent.drivers.libvirt.host import Host, refusal
from node_agent.drivers.libvirt.inventory import Vm
from node_agent.drivers.libvirt.run_folder import RunFolder, as_begin
from node_agent.drivers.libvirt.ssh import Result

_STATUS = '{"execute":"guest-fsfreeze-status"}'


@dataclass(frozen=True, slots=True)
class Begun:
    consistency: Consistency
    why_not_frozen: str  # where the guest should have been frozen and was not
    still_frozen: bool = False  # it could not be thawed; the watchdog goes on trying


def begin(host: Host, vm: Vm, request: BackupRequest, folder: RunFolder, job: str) -> Begun:
    """``job``: words of the shell that begin it. Raises what it is refused with."""
    wanted = request.freeze is not Freeze.NO
    missing = "" if vm.agent else "its guest agent does not answer"
    if vm.state != "running":
        missing = f"it is {vm.state}"
    if request.freeze is Freeze.REQUIRE and missing:
        raise GuestNotFrozen(
            f"The guest of {vm.name} cannot be frozen: {missing}.",
            hint="Install and start qemu-guest-agent in the guest, or do not require a freeze.",
        )
    if not wanted or missing:
        result = host.connection.run(as_begin(folder.path, job))
        if result.code:
            raise refusal("virsh backup-begin", result)
        return Begun(Consistency.CRASH, missing if wanted else "")
    return _frozen(host, vm, request, folder, job)


def _frozen(host: Host, vm: Vm, request: BackupRequest, folder: RunFolder, job: str) -> Begun:
    virsh, limit = host.virsh_words, request.limits.frozen_s
    condition = "[ $frozen = 0 ]" if request.freeze is Freeze.REQUIRE else "true"
    script = as_begin(
        folder.path,
        f"""LC_ALL=C; export LC_ALL
cd {shlex.quote(folder.path)} || exit 1
rm -f thawed
: >frozen
timeout {limit} {virsh("domfsfreeze", vm.uuid)} >freeze.log 2>&1
frozen=$?
code=0
if {condition}; then {job} || code=$?; fi
status=$(timeout {limit} {virsh("qemu-agent-command", "--timeout", "5", vm.uuid, _STATUS)} 2>/dev/null)
timeout 30 {virsh("domfsthaw", vm.uuid)} >thaw.log 2>&1 && rm -f frozen
echo "frozen=$frozen"
echo "status=$status"
[ -e thawed ] && echo "thawed=watchdog"
[ -e frozen ] && echo "still=frozen"
cat freeze.log
exit $code""",
    )
    result = host.connection.run(script, timeout_s=limit + 180)
    said = dict(line.partition("=")[::2] for line in result.out.splitlines() if "=" in line)
    why = _why_not(said, result)
    if why and request.freeze is Freeze.REQUIRE:
        raise GuestNotFrozen(f"The guest of {vm.name} was not frozen: {why}.")
    if result.code:
        raise refusal("virsh backup-begin", result)
    return Begun(Consistency.CRASH if why else Consistency.APPLICATION, why, "still" in said)


def _why_not(said: dict[str, str], result: Result) -> str:
    if said.get("frozen") != "0":
        return " ".join(result.out.split("status=")[-1].split("\n", 1)[-1].split())[-200:] or "the agent refused it"
    if "thawed" in said:
        return "the watchdog had to thaw it before the snapshot was there"
    if '"frozen"' not in said.get("status", ""):
        return "it was thawed before the snapshot was there"
    return ""
