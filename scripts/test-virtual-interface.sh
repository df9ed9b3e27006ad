#!/usr/bin/env bash
# Tries interfaces, DNS and redirection end to end: sudo scripts/test-virtual-interface.sh quick|comprehensive
#
# In a network namespace of its own, so that nothing of this machine's network is touched, with a simulated cluster in it.
#
#   quick           up, a name resolves, a pod answers by name, down leaves no trace
#   comprehensive   that, and: HTTPS, databases' kind of TCP, pods by name, names that do not exist, a range that is
#                   taken, up twice, and down after a tunnel that was killed
#   --dry-run       print what would be tried
#   --help          this text
set -euo pipefail
# shellcheck source=SCRIPTDIR/with-tunnel.sh
source "$(dirname "$0")/with-tunnel.sh"

zone=svc.cluster.local
how='' dry_run=
for argument; do
    case $argument in
    quick | comprehensive) how=$argument ;;
    --dry-run) dry_run=1 ;;
    -h | --help) print_help && exit ;;
    *) die "unknown: $argument (--help)" ;;
    esac
done
[[ -n $how ]] || die "quick or comprehensive? (--help)"
dry_text="unshare --net --mount (a network of its own), then kube-tunnel --demo --virtual --port 18080, and $how tries"
[[ -z $dry_run ]] || { say "$dry_text" && exit; }
[[ $EUID -eq 0 ]] || die "a network namespace needs root: sudo $0 $how"
for program in unshare ip nft dig curl pkill; do
    command -v "$program" >/dev/null || die "$program is not installed"
done

if [[ ${KUBE_TUNNEL_OWN_NETWORK:-} != 1 ]]; then
    find_kube_tunnel
    KUBE_TUNNEL_OWN_NETWORK=1 KUBE_TUNNEL=$kube_tunnel exec unshare --net --mount --pid --fork --mount-proc "$0" "$how"
fi

# from here on nothing is the machine's own: resolver, state, other programs' sockets
private=$(mktemp -d)
printf 'nameserver 127.0.0.1\n' >"$private/resolv.conf"
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mount --bind "$private/resolv.conf" "$(readlink -f /etc/resolv.conf)"
ip link set lo up

passed=0 failed=0
# try TEXT COMMAND…: tells whether the command succeeds, and what it printed where it does not
try() {
    local text=$1 output
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1)) && say "ok    $text"
    else
        failed=$((failed + 1)) && printf 'FAIL  %s: %s\n%s\n' "$text" "$*" "$output"
    fi
}
answers() { grep -qE "$1" <<<"$(curl -q -sSk --noproxy '*' --max-time 10 "${@:2}")"; }
resolves() { [[ $(dig +short +time=3 +tries=1 "@$1" "$2" A) =~ ^10\. ]]; }
status_of() { [[ $(dig +time=3 +tries=1 "@$1" "$2" "$3") == *"status: $4, "* ]]; }
speaks() { [[ $(exec 3<>"/dev/tcp/$1/$2" && { [[ -z $3 ]] || printf '%s' "$3" >&3; } && head -c 4 <&3) == $4* ]]; }
interfaces() { [[ $(ip -brief address | grep -cE 'kube-(dns|proxy)0') == "$1" ]]; }
untouched() { interfaces 0 && [[ -z $(nft list ruleset) && $(</etc/resolv.conf) == 'nameserver 127.0.0.1' ]]; }
netsetup() { "$kube_tunnel" netsetup "$@"; }

start_tunnel --demo --virtual --port 18080
wait_for_pod "echo.demo.$zone" /hostname
dns_ip=$(ip -o -4 address show kube-dns0 | awk '{ sub("/.*", "", $4); print $4 }')
say "DNS at $dns_ip, $(ip -brief address show kube-proxy0)"

try "both interfaces are there" interfaces 2
try "a Service's name resolves to a virtual IP" resolves "$dns_ip" "echo.demo.$zone"
try "a pod answers by the Service's name" answers '^echo-' "http://echo.demo.$zone/hostname"
if [[ $how == comprehensive ]]; then
    try "HTTPS" answers '^echo-' "https://echo.demo.$zone/hostname"
    try "a server that speaks first" speaks "echo.demo.$zone" 9001 '' ''
    try "TCP on any port of the Service" speaks "echo.demo.$zone" 7 ping ping
    try "a pod of a headless Service" answers '^echo-sts-1' "http://echo-sts-1.echo-sts.demo.$zone:8080/hostname"
    try "a port that the Service has not got is refused" answers PortNotExposed "http://echo.demo.$zone:81/"
    try "a name that nobody has" status_of "$dns_ip" "nobody.demo.$zone" A NXDOMAIN
    try "no IPv6 address, and no error" status_of "$dns_ip" "echo.demo.$zone" AAAA NOERROR
    try "netsetup finds all as it made it" netsetup status
    end_tunnel KILL
    try "killed: the network is still up" interfaces 2
    try "down after a kill" netsetup down
    try "leaves no trace" untouched
    ip link add taken0 type bridge && ip address add 10.8.0.77/24 dev taken0 && ip link set taken0 up
    try "up beside a network that has the first range" netsetup up --port 18080
    try "takes the second range" grep -q ' 10\.9\.0\.1/' <(ip -brief address show kube-dns0)
    try "up twice is up once" netsetup up --port 18080
    try "both interfaces are there once" interfaces 2
    try "down" netsetup down
    ip link delete taken0
else
    end_tunnel TERM
fi
try "nothing is left of it" untouched
rm -rf "$private"
say "$passed passed, $failed failed"
((failed == 0))
