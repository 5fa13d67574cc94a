# shellcheck shell=bash
# A node: a machine in namespaces of its own, and processes on it. Sourced after lab.sh; `tools` is Kubernetes' folder.

: "${lab:?}" "${files:?}" "${tools:?}"

# on NODE COMMAND...   as a process of that node
on() {
  local node="$1"; shift
  nsenter --target "$(cat "$files/$node/pid")" --mount --uts --net --pid --cgroup -- "$@"
}

# shellcheck disable=SC2016  # expanded by the other bash
# service NODE NAME COMMAND...   in the background, until the node ends or end_service
service() {
  local node="$1" name="$2"; shift 2
  setsid nsenter --target "$(cat "$files/$node/pid")" --mount --uts --net --pid --cgroup -- \
    bash -c 'cd "$0"; echo $$ >"$1.pid"; shift; exec "$@"' "$files/$node" "$name" "$@" </dev/null >>"$files/$node/$name.log" 2>&1 &
  disown
}

# end_service NODE NAME   waits for its end, too
end_service() {
  local pid; pid="$(cat "$files/$1/$2.pid" 2>/dev/null)" || return 0
  on "$1" kill "$pid"
  wait_for "$2 of $1 ends" gone "$1" "$pid"
}
gone() { ! on "$1" kill -0 "$2"; }

# join_groups NAME PID   puts a process into a control group of its own of each hierarchy
join_groups() {
  local path
  awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts | while read -r path; do
    mkdir -p "$path/$1"
    case "$path" in *cpuset*) cat "$path/cpuset.cpus" >"$path/$1/cpuset.cpus"; cat "$path/cpuset.mems" >"$path/$1/cpuset.mems" ;; esac
    echo "$2" >"$path/$1/cgroup.procs"
  done
}

# hand_down GROUP   all controllers to the groups below; only one without processes can, or the machine's own root
hand_down() {
  [ -e "$1/cgroup.controllers" ] || return 0
  if [ "$1" != /sys/fs/cgroup ]; then
    mkdir -p "$1/init"
    while read -r pid; do echo "$pid" >"$1/init/cgroup.procs"; done <"$1/cgroup.procs"
  fi
  tr ' ' '\n' <"$1/cgroup.controllers" | while read -r controller; do echo "+$controller" >"$1/cgroup.subtree_control"; done
}

# begin_node NODE   its first process
begin_node() {
  mkdir -p "$files/$1"
  hand_down /sys/fs/cgroup
  (
    join_groups "$lab-$1" "$BASHPID"
    exec setsid nsenter --net="/run/netns/$lab-$1" unshare --mount --pid --uts --cgroup --fork scripts/lib/kubernetes/init "$1" "$files" "$tools"
  ) </dev/null >"$files/$1/init.log" 2>&1 &
  disown
  wait_for "$1 has its namespaces: $files/$1/init.log" test -e "$files/$1/ready"
  hand_down "/sys/fs/cgroup/$lab-$1"
  # Of the node's processes in its network namespace the one that is first in its own PID namespace.
  ip netns pids "$lab-$1" | while read -r pid; do
    [ "$(awk '/^NSpid:/ { print $NF }' "/proc/$pid/status")" != 1 ] || echo "$pid"
  done | head -1 >"$files/$1/pid"
}
