#!/bin/sh
# Started by a BRS node before it makes anything on this hypervisor, and ended by it. When the node dies or goes silent,
# this ends the backup job, thaws the guest, and removes the run's folder; it needs virsh alone. It counts its own
# seconds, so that setting the clock does not matter. Removing the folder by hand ends it, too.
dir=$1 uri=$2 machine=$3 silent=$4 longest=$5 floor_kib=$6 frozen=$7
virsh_() { LC_ALL=C timeout -k 5 30 virsh -q -c "$uri" "$@"; }
is_ours() { virsh_ backup-dumpxml "$machine" 2>/dev/null | grep -qF "$dir/"; }

end_job() { # ours alone: the job's own description names our folder
  for file in "$dir"/*.pid; do # a number may be another program's by now
    pid=$(cat "$file" 2>/dev/null) && grep -qsF "$dir/" "/proc/$pid/cmdline" && kill "$pid"
  done
  tries=0
  while is_ours && [ $tries -lt 60 ]; do
    virsh_ domjobabort "$machine"
    sleep 1
    tries=$((tries + 1))
  done
  rm -f "$dir"/scratch.*
}

echo $$ >"$dir/watch"
age=0 quiet=0 cold=0
while [ -d "$dir" ]; do
  sleep 1
  age=$((age + 1))
  if [ -e "$dir/lease" ]; then quiet=0 && rm -f "$dir/lease"; else quiet=$((quiet + 1)); fi
  if [ -e "$dir/frozen" ]; then
    cold=$((cold + 1))
    if [ $cold -ge "$frozen" ]; then
      if virsh_ domfsthaw "$machine"; then
        : >"$dir/thawed" && rm -f "$dir/frozen"
      elif active=$(virsh_ list --uuid) && ! echo "$active" | grep -qxF "$machine"; then
        rm -f "$dir/frozen" # it does not run any more
      fi
    fi
  else
    cold=0
  fi
  if [ $quiet -ge "$silent" ]; then
    end_job
    [ -e "$dir/frozen" ] && continue # for as long as the guest does not thaw
    rm -rf "$dir"
    rmdir "$(dirname "$dir")"
  elif [ -e "$dir/ended" ]; then
    is_ours && end_job # it began just when it was to end
  else
    why=
    [ $age -ge "$longest" ] && why=long
    free=$(df -Pk "$dir" 2>/dev/null | awk 'NR == 2 { print $4 }')
    [ -n "$free" ] && [ "$free" -lt "$floor_kib" ] && why=space
    if [ -n "$why" ]; then
      echo "$why" >"$dir/ended" # first: whoever reads from the job learns why it went away
      end_job
    fi
  fi
done 2>/dev/null
