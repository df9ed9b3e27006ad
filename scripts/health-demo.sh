#!/usr/bin/env bash
# Shows what the tunnel finds out about Services and pods: a healthy one, one that is not ready, a port that refuses, a
# name that nobody has; and what the health checks, which go through the forwards to the pods, make of those in use.
#
#   scripts/health-demo.sh                                      a simulated cluster; no root
#   sudo scripts/health-demo.sh --virtual-interface [--vi-ip IP]  the same by name, with interfaces and DNS of this machine
#
#   --vi-ip IP   the address of the DNS interface (default: 10.8.0.1, else the first of a free range)
#   --dry-run    print the commands that would run, and run nothing
#   --help       this text
set -euo pipefail
# shellcheck source=SCRIPTDIR/with-tunnel.sh
source "$(dirname "$0")/with-tunnel.sh"

virtual='' vi_ip='' dry_run=
while (($#)); do
    case $1 in
    --virtual-interface) virtual=1 && shift ;;
    --vi-ip) [[ $# -gt 1 ]] || die "--vi-ip wants an address"; vi_ip=$2 && shift 2 ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) print_help && exit ;;
    *) die "unknown: $1 (--help)" ;;
    esac
done
[[ -z $vi_ip || -n $virtual ]] || die "--vi-ip goes with --virtual-interface"

zone=svc.cluster.local
requests=(
    "a Service with two ready pods|echo.demo.$zone|/hostname"
    "the same once more|echo.demo.$zone|/hostname"
    "a Service whose only pod is not ready|unready.demo.$zone|/"
    "a port that the pod refuses|echo.demo.$zone:9999|/"
    "a Service that does not exist|nobody.demo.$zone|/"
)
if [[ -n $virtual ]]; then
    flags=(--demo --virtual --port 18080 --set kube_health_interval=1s --set kube_health_max_failures=1)
    [[ -z $vi_ip ]] || flags+=(--virtual-ip "$vi_ip")
else
    flags=(--demo --no-dns --set kube_health_interval=1s --set kube_health_max_failures=1 -- -p 0)
fi

if [[ -n $dry_run ]]; then
    say "kube-tunnel ${flags[*]}"
    for request in "${requests[@]}"; do
        IFS='|' read -r text host path <<<"$request"
        if [[ -n $virtual ]]; then say "curl http://$host$path    # $text"; else say "curl -H 'Host: $host' TUNNEL$path    # $text"; fi
    done
    say "curl TUNNEL/health/status"
    exit
fi
[[ -z $virtual || $EUID -eq 0 ]] || die "--virtual-interface changes the machine's network: sudo $0 --virtual-interface"

start_tunnel "${flags[@]}"
wait_for_pod "echo.demo.$zone" /hostname
for request in "${requests[@]}"; do
    IFS='|' read -r text host path <<<"$request"
    say "== $text: http://$host$path"
    if [[ -n $virtual ]]; then
        curl -q -sS --noproxy '*' --max-time 10 -w 'HTTP %{http_code} from %{remote_ip}\n\n' "http://$host$path" || true
    else
        ask "$host" "$path" -w 'HTTP %{http_code}\n\n' || true
    fi
done
say "== what the health checks say, through the forwards: $tunnel_url/health/status"
# both are there once the pods were checked: a port that answers, and the one that refuses
found() { [[ $status == *'"health": "healthy"'* && $status == *'"health": "unhealthy"'*'Nothing listens on port 9999'* ]]; }
for _ in $(seq 100); do
    status=$(curl -q -sS --noproxy '*' --max-time 10 "$tunnel_url/health/status")
    found && break
    sleep 0.2
done
say "$status"
found || die "the checks did not find what is healthy and what is not within 20 s"
