#!/bin/sh
# Puts Prometheus and promtool, with which tests check alerts and the dashboard, into .venv/prometheus where neither
# answers. They come from Debian's package, which is unpacked, not installed: it would start a service. Where that cannot
# be done, a sentence says so, and these tests are left out.

folder=.venv/prometheus
promtool --version >/dev/null 2>&1 && exit
"$folder/usr/bin/promtool" --version >/dev/null 2>&1 && exit

as_root=env
[ "$(id -u)" = 0 ] || as_root="sudo -n"

unpack() {
    $as_root apt-get -qq update &&
        mkdir -p "$folder" &&
        (cd "$folder" && apt-get -qq download prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb)
}

if ! fault=$(unpack </dev/null 2>&1); then
    echo "no promtool answers here, and apt-get cannot fetch Debian's package prometheus" \
        "($(echo "$fault" | tail -n 1)); install it by hand, or the tests of alerts and dashboard are left out"
fi
