# shellcheck shell=bash
# Sourced by the scripts beside it: a tunnel of their own that leaves nothing behind, and requests to Services through it.

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# the header of the script, without its first line, up to the first line that is no comment
print_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# $KUBE_TUNNEL, else the checkout's, else the PATH's
find_kube_tunnel() {
    local checkout
    checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    for kube_tunnel in "${KUBE_TUNNEL:-}" "$checkout/.venv/bin/kube-tunnel" "$(command -v kube-tunnel || true)"; do
        [[ -n $kube_tunnel && -x $kube_tunnel ]] && return
    done
    die "no kube-tunnel found: 'make run' once, 'pip install .', or KUBE_TUNNEL=/path/to/kube-tunnel"
}

# start_tunnel FLAGS…: sets tunnel_url. What the tunnel says goes to a file, which is shown where it does not start
start_tunnel() {
    find_kube_tunnel
    work=$(mktemp -d)
    : >"$work/log"
    trap stop_tunnel EXIT
    trap 'exit 130' INT TERM
    XDG_STATE_HOME=$work PYTHONUNBUFFERED=1 "$kube_tunnel" --set confdir="$work/ca" "$@" >"$work/log" 2>&1 &
    tunnel_pid=$!
    for _ in $(seq 300); do
        if tunnel_url=$(sed -n 's/.*listening at \(127\.0\.0\.1:[0-9]*\).*/http:\/\/\1/p' "$work/log" | head -n 1) &&
            [[ -n $tunnel_url ]]; then
            return
        fi
        kill -0 "$tunnel_pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/log" >&2
    exit 1
}

# end_tunnel SIGNAL: to the tunnel alone, which ends its children; a KILL goes to these as well
end_tunnel() {
    if [[ -n ${tunnel_pid:-} ]]; then
        [[ $1 != KILL ]] || pkill -KILL -P "$tunnel_pid" || true
        kill -s "$1" "$tunnel_pid" 2>/dev/null || true
        wait "$tunnel_pid" 2>/dev/null || true
        tunnel_pid=
    fi
}

stop_tunnel() {
    end_tunnel TERM
    [[ -z ${work:-} ]] || rm -rf "$work"
}

# ask HOST PATH [curl's options…]: a request to a Service. The environment's proxies are no way to it
ask() {
    local host=$1 path=$2
    shift 2
    curl -q --no-progress-meter --noproxy '*' --max-time 30 -H "Host: $host" "$@" "$tunnel_url$path"
}

# wait_for_pod HOST PATH: until a pod has answered; a simulated cluster takes a second
wait_for_pod() {
    local status
    for _ in $(seq 100); do
        status=$(ask "$1" "$2" -o /dev/null -w '%{http_code}' || true)
        [[ $status == 200 ]] && return
        [[ $status == 000 || $status == 50[234] ]] || break
        sleep 0.2
    done
    say "$1 answers $2 with HTTP $status:" >&2
    ask "$1" "$2" >&2 || true
    exit 1
}
