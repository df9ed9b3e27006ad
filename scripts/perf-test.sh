#!/usr/bin/env bash
# How fast requests reach a pod through the tunnel: latency and rate, new and kept connections, one at a time and 16.
#
#   scripts/perf-test.sh                                     a simulated cluster, the tunnel and curl, all on this machine
#   scripts/perf-test.sh --service api.shop --path /healthz  a Service of your current cluster; GET, a few hundred times
#
#   --service HOST[:PORT]   the Service's name (default: the simulated cluster's echo.demo.svc.cluster.local)
#   --path PATH             a small answer with status 200 (default: /hostname)
#   --download PATH         a large one (default: /bytes?n=100m of the simulated cluster, else none)
#   --requests N            of each kind (default: 200)
#   --dry-run               print the commands that would run, and run nothing
#   --help                  this text
#   -- FLAGS                for kube-tunnel, e.g. -- --context staging
#
# Every request goes to a Service and is answered by one of its pods; one that is not ends the test. curl's own start is
# not counted. Figures are those of a loaded client, server and tunnel together: compare them with others of this machine.
set -euo pipefail
# shellcheck source=SCRIPTDIR/with-tunnel.sh
source "$(dirname "$0")/with-tunnel.sh"

service='' path=/hostname download='' requests=200 dry_run=
while (($#)); do
    case $1 in
    --service | --path | --download | --requests) [[ $# -gt 1 ]] || die "$1 wants a value" ;;&
    --service) service=$2 && shift 2 ;;
    --path) path=$2 && shift 2 ;;
    --download) download=$2 && shift 2 ;;
    --requests) requests=$2 && shift 2 ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) print_help && exit ;;
    --) shift && break ;;
    *) die "unknown: $1 (--help)" ;;
    esac
done
[[ $requests =~ ^[1-9][0-9]{0,4}$ ]] || die "--requests wants a number from 1 to 99999"
case $service in
localhost* | 127.* | *kube-tunnel.internal*) die "$service is the tunnel itself, which no pod answers for" ;;
esac
flags=(--no-dns "$@" -- -p 0 --set flow_detail=0)
if [[ -z $service ]]; then
    service=echo.demo.svc.cluster.local download=${download:-/bytes?n=100m}
    flags=(--demo "${flags[@]}")
fi
[[ $path == *\?* ]] && glob="&i=[1-$requests]" || glob="?i=[1-$requests]"

if [[ -n $dry_run ]]; then
    say "kube-tunnel ${flags[*]}"
    say "curl -H 'Host: $service' 'TUNNEL$path$glob'    # also: -H 'Connection: close', --parallel --parallel-max 16, both"
    [[ -z $download ]] || say "curl -H 'Host: $service' 'TUNNEL$download'"
    exit
fi

# measure TEXT [curl's options…]: asks $requests times and prints rate and percentiles of the milliseconds
measure() {
    local text=$1 started
    shift
    started=$(date +%s%N)
    ask "$service" "$path$glob" "$@" -o /dev/null -w '%{http_code} %{time_total}\n' --max-time 120 >"$work/times"
    awk '$1 != 200 { bad++ } END { if (bad) { print bad " answers were not 200" > "/dev/stderr"; exit 1 } }' "$work/times"
    sort -k2 -n "$work/times" | awk -v text="$text" -v ns="$(($(date +%s%N) - started))" '
        { ms[NR] = $2 * 1000 }
        function at(share) { return ms[int((NR - 1) * share) + 1] }
        END { printf "%-42s %6d requests/s   p50 %6.1f   p90 %6.1f   p99 %6.1f ms\n", text, NR / ns * 1e9, at(.5), at(.9), at(.99) }'
}

start_tunnel "${flags[@]}"
wait_for_pod "$service" "$path"
say "$service through $tunnel_url, $requests requests each"
measure 'one connection, kept'
measure 'one at a time, a connection each' -H 'Connection: close'
measure '16 at a time' --parallel --parallel-max 16
measure '16 at a time, a connection each' --parallel --parallel-max 16 -H 'Connection: close'
if [[ -n $download ]]; then
    ask "$service" "$download" -o /dev/null --max-time 120 -w '%{http_code} %{size_download} %{speed_download}\n' |
        awk '$1 != 200 { print "the download was answered " $1 > "/dev/stderr"; exit 1 }
             { printf "%-42s %6d MB/s (%d MB)\n", "one large answer", $3 / 1e6, $2 / 1e6 }'
fi
