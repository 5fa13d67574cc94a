# shellcheck shell=bash
# A row says what was tried and what came back; one that is not as it must be ends the demonstration. Sourced after common.sh.

: "${rows:?}" "${files:?}"

# row WHAT EXPECTED GOT   EXPECTED is a pattern of the shell
row() {
  # shellcheck disable=SC2053  # a pattern
  if [[ "$3" == $2 ]]; then
    printf '  \033[32mok\033[0m  %-62s %s\n' "$1" "${3//$'\n'/ }"
    rows=$((rows + 1))
  else
    printf '  \033[31mNO\033[0m  %-62s %s   (expected %s)\n' "$1" "${3:-nothing}" "$2"
    return 1
  fi
}

# eventually WHAT EXPECTED COMMAND...   a row of the command's first right output within 30 s, else of its last
eventually() {
  local what="$1" expected="$2" end=$((SECONDS + 30)) got; shift 2
  while :; do
    got="$("$@" 2>&1 || true)"
    # shellcheck disable=SC2053
    if [[ "$got" == $expected ]] || [ $SECONDS -ge $end ]; then break; fi
    sleep 0.2
  done
  row "$what" "$expected" "$got"
}

# Addresses of pods and Services are read once: asking costs as much as a row.
read_addresses() {
  kubectl -n demo get pods,services -o jsonpath='{range .items[*]}{.kind}/{.metadata.name} {.status.podIPs[*].ip}{.spec.clusterIPs[*]}{"\n"}{end}' >"$files/addresses"
}

# address KIND NAME FAMILY(4|6)
address() {
  awk -v name="$1/$2" '$1 == name { for (i = 2; i <= NF; i++) print $i }' "$files/addresses" | if [ "$3" = 4 ]; then grep -v :; else grep :; fi
}
pod_ip() { address Pod "$@"; }
service_ip() { address Service "$@"; }

# node_ip NODE FAMILY
node_ip() { addresses "$1" | cut -d, -f "$(($2 / 2 - 1))"; }

in_pod() { local pod="$1"; shift; kubectl -n demo exec "$pod" -- "$@"; }

# What a caller hears who connects to ADDRESS PORT; IPv6 addresses come in their short form.
# shellcheck disable=SC2016  # expanded by the other shell
call='a="$1"; case "$a" in *:*) a="[$a]" ;; esac
heard="$(socat -T 5 - "TCP:$a:$2,connect-timeout=5" </dev/null)" || exit 1
peer="${heard#* }"; peer="${peer#\[}"; peer="${peer%\]}"
set -- $(getent ahosts "$peer"); echo "${heard%% *} $1"'

# shellcheck disable=SC2016
calls='while [ $# -gt 1 ]; do ( '"$call"' ) 2>/dev/null || echo; shift 2; done'

# from_pod POD ADDRESS PORT, from_machine NAMESPACE ADDRESS PORT
from_pod() { in_pod "$1" sh -c "$call" call "$2" "$3"; }
from_machine() { inside "$1" sh -c "$call" call "$2" "$3"; }

# ask POD   reads lines WHAT|EXPECTED|ADDRESS|PORT and makes rows of them, by one command in the pod; what is not right yet gets its time
ask() {
  local asked answers line what expected address port targets=() number=0
  mapfile -t asked
  for line in "${asked[@]}"; do
    IFS='|' read -r what expected address port <<<"$line"
    targets+=("$address" "$port")
  done
  mapfile -t answers < <(in_pod "$1" sh -c "$calls" calls "${targets[@]}" 2>/dev/null)
  for line in "${asked[@]}"; do
    IFS='|' read -r what expected address port <<<"$line"
    # shellcheck disable=SC2053
    if [[ "${answers[number]:-}" == $expected ]]; then row "$what" "$expected" "${answers[number]}"; else eventually "$what" "$expected" from_pod "$1" "$address" "$port"; fi
    number=$((number + 1))
  done
}
