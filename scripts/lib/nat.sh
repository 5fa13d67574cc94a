# shellcheck shell=bash
# Routers that translate addresses. Sourced by lab.sh.

: "${lab:?}"

# nat NAME NUMBER SOURCE   a router that drops strangers at every port; SOURCE is how it translates
nat() {
  namespace "$1"
  inside "$1" sysctl -qw net.ipv4.ip_forward=1
  attach "$1" wan "$2"
  inside "$1" nft -f - <<RULES
table ip nat { chain out { type nat hook postrouting priority 100; oifname wan $3
 }
}
table inet fence {
 chain input { type filter hook input priority 0; iifname wan ct state established,related accept
  iifname wan drop
 }
 chain forward { type filter hook forward priority 0; iifname wan ct state established,related accept
  iifname wan drop
 }
}
RULES
}

# A router like most at home: a port inside is a port outside, whoever it speaks to.
port_restricted_nat() { nat "$1" "$2" masquerade; }

# Another port for each destination.
symmetric_nat() { nat "$1" "$2" "masquerade random"; }
