# shellcheck shell=bash
# What scripts/vm does inside the machine before the command. Sourced there, `program` set to the agent or empty.

for module in wireguard nf_tables nft_limit nft_ct veth bridge tun vxlan; do modprobe "$module"; done
mountpoint -q /run || mount -t tmpfs t /run
mkdir -p /run/netns /run/near/bin /run/near/lib
ip link set lo up
# The kernel patches its receive path whenever the first socket wants timestamps and the last is gone, as with each ping
# of a test; two emulated processors sometimes trip over that. One ping that stays leaves the path as it is.
ping -q -i 3600 127.0.0.1 >/dev/null 2>&1 &

# The shared file system reads a program anew at each start: what tests start often is kept in memory.
for tool in ip nft ping wg conntrack env cat sh; do
  tool=$(command -v "$tool") || continue
  cp -L "$tool" /run/near/bin
  ldd "$tool" | grep -o '/[^ ]*' | xargs -r cp -uL -t /run/near/lib
done
export PATH=/run/near/bin:$PATH LD_LIBRARY_PATH=/run/near/lib
if [ -n "${program:-}" ]; then
  cp "$program" /run/near/farspan
  mount --bind /run/near/farspan "$program"
fi
