# Held open by a BRS node around the instant of a backup. The second command runs when the node says so, when its
# connection ends however it ends, or when the time is over: what the first one stopped does not stay stopped.
trap : HUP PIPE
out=$(mktemp "${TMPDIR:-/tmp}/brs-command.XXXXXX") || exit 1
trap 'rm -f "$out"' EXIT
say() { # in a shell of its own: who listens may be gone
  (printf '%s %s %s\n' "$mark" "$1" "$2"; tail -c 4000 "$out"; printf '\n%s end\n' "$mark") 2>/dev/null
}
run() {
  BRS_STAGE=$1 timeout -k 5 "$limit" /bin/sh -c "$2" </dev/null >"$out" 2>&1
  say "$1" $?
}
if [ -n "$before" ]; then run before "$before"; else : >"$out"; say before none; fi
timeout -k 5 "$hold" head -n 1 >/dev/null
[ $? = 124 ] && { echo "$mark late"; } 2>/dev/null
if [ -n "$after" ]; then run after "$after"; else : >"$out"; say after none; fi
