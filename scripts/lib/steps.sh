# shellcheck shell=bash
# The steps of scripts/test: what ran, what failed, what could not run here. Sourced after common.sh.

log="$(mktemp)" failed=() ran=() skipped=()
declare -A running=() words=()
trap 'for group in "${running[@]}"; do kill -- -"$group" 2>/dev/null || true; done; rm -f "$log" "${words[@]}"' EXIT

# step NAME COMMAND...   runs to its end, whatever came before
step() {
  local name="$1" start=$SECONDS; shift
  say "$name"
  if "$@" 2>&1 | tee -a "$log"; then ran+=("$name ($((SECONDS - start)) s)"); else failed+=("$name"); fi
}

# beside NAME COMMAND...   begins a step that goes on beside the next ones, in the processor time that these leave. Such
# steps take turns, in the order in which they were begun.
beside() {
  local name="$1"; shift
  words[$name]="$(mktemp)"
  setsid scripts/lib/beside "$log" "$@" </dev/null >"${words[$name]}" 2>&1 &
  running[$name]=$!
}

# finish NAME   waits for the end of such a step, if it was begun, and counts it like any other
finish() {
  local name="$1" group="${running[$1]:-}"
  [ -n "$group" ] || return 0
  say "$name"
  if wait "$group"; then ran+=("$name ($(tail -n 1 "${words[$name]}") s beside the others)"); else failed+=("$name"); fi
  unset "running[$name]"
  head -n -1 "${words[$name]}" | tee -a "$log"
  [[ " ${failed[*]} " != *" $name "* ]]
}

skip() { say "SKIPPED $1: $2"; skipped+=("$1"); [ "${CI:-}" != true ] || failed+=("$1: $2"); }
privileged() { if can_be_root; then root_runner; else skip "$1" "needs root or sudo"; return 1; fi; }

# What is said at the end; its status is the test's.
report() {
  printf '\nran: %s\n' "$(IFS=,; echo "${ran[*]}")"
  [ ${#skipped[@]} -eq 0 ] || printf 'skipped: %s\n' "${skipped[*]}"
  for name in "${failed[@]}"; do echo "FAILED: $name"; done
  read -r passed broken <<<"$(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")"
  [ ${#failed[@]} -eq 0 ] || [ "$broken" -gt 0 ] || broken=${#failed[@]}
  echo "$passed passed, $broken failed"
  [ "$broken" -eq 0 ] && [ ${#failed[@]} -eq 0 ]
}
