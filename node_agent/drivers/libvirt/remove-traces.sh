#!/bin/sh
# What backups keep at a virtual machine, removed on the hypervisor itself. Needs virsh and qemu-img, and no BRS.
#
#   sh remove-traces.sh VM [MARK]      VM: name or UUID. MARK: the eight digits of whose (default: whosever they are)
#
# Checkpoints and bitmaps named brs-MARK-NUMBER go; those of other tools stay. No restore point is touched: the next
# backup reads everything. VIRSH="virsh -c URI" for another libvirt than the usual one.
set -eu
LC_ALL=C
export LC_ALL
vm=${1:?usage: sh remove-traces.sh VM [MARK]}
mark=${2:-}
[ -n "$mark" ] || mark='[0-9a-f]{8}'
names="brs-$mark-[0-9]{1,9}"
virsh=${VIRSH:-virsh}

state=$($virsh domstate "$vm")
if $virsh backup-dumpxml "$vm" >/dev/null 2>&1; then
  echo "A backup of $vm runs. Wait, or end it: virsh domjobabort $vm" >&2
  exit 1
fi

# libvirt's records: normally there are none between two backups.
for name in $($virsh checkpoint-list "$vm" --name | grep -Ex "$names" || :); do
  $virsh checkpoint-delete "$vm" "$name" --metadata >/dev/null
done

# Each line: what holds a bitmap (a block node of qemu, or an image's path), a tab, the bitmap's name.
held_by_qemu() {
  $virsh qemu-monitor-command "$vm" --pretty '{"execute":"query-named-block-nodes"}' | awk -F'"' '
    /^    \{/ { node = ""; held = 0; inside = 0 }
    /^      "node-name": / { node = $4 }
    /^      "dirty-bitmaps": \[/ { inside = 1 }
    /^      \]/ { inside = 0 }
    inside && /^ *"name": / { name[held++] = $4 }
    /^    \}/ { for (i = 0; i < held; i++) print node "\t" name[i] }'
}

held_by_images() {
  $virsh domblklist "$vm" --details | sed -nE 's/^ *(file|block) +disk +[^ ]+ +//p' | while IFS= read -r image; do
    qemu-img info -U -f qcow2 --output=json "$image" 2>/dev/null | sed -nE 's/^ *"name": "([^"]*)",?$/\1/p' |
      while IFS= read -r name; do printf '%s\t%s\n' "$image" "$name"; done
  done
}

remove() { # holder, name
  if [ "$state" = "shut off" ]; then
    qemu-img bitmap --remove -f qcow2 "$1" "$2"
  else
    said=$($virsh qemu-monitor-command "$vm" \
      "{\"execute\":\"block-dirty-bitmap-remove\",\"arguments\":{\"node\":\"$1\",\"name\":\"$2\"}}")
    case $said in *'"error"'*) echo "$2: $said" >&2 && return 1 ;; esac
  fi
  echo "removed $2 ($1)"
}

tab=$(printf '\t')
if [ "$state" = "shut off" ]; then list=$(held_by_images); else list=$(held_by_qemu); fi
list=$(printf '%s\n' "$list" | grep -E "$tab$names\$" || :)
[ -n "$list" ] || { echo "Nothing is kept at $vm." && exit 0; }
while IFS="$tab" read -r holder name; do
  remove "$holder" "$name" </dev/null
done <<END
$list
END
