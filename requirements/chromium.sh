#!/bin/sh
# Installs Chromium, in which tests open reports, from Debian's packages where none answers. Where that cannot be done, a
# sentence says so, and these tests are left out.

chromium --version >/dev/null 2>&1 && exit

as_root="env DEBIAN_FRONTEND=noninteractive"
[ "$(id -u)" = 0 ] || as_root="sudo -n $as_root"

install() {
    $as_root apt-get -qq update &&
        $as_root apt-get -qq -o DPkg::Lock::Timeout=120 install --yes --no-install-recommends chromium
}

if ! fault=$(install </dev/null 2>&1); then
    echo "no Chromium answers here, and apt-get cannot install it as root ($(echo "$fault" | tail -n 1));" \
        "install it by hand, or the tests that open a report in a browser are left out"
fi
