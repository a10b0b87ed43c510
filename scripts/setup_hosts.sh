#!/usr/bin/env bash
# Install what the hosts in hosts/ need to be built and tested: Elixir, Node's packages, libzmq and
# msgpack-c with their headers, valgrind. Safe to run at any time: what is there is left alone. What
# cannot be installed is said, and is no failure here: the tests of that host skip, or fail in CI.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'hosts: %s\n' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif has sudo; then
        sudo -n "$@"
    else
        return 1
    fi
}

# The name of msgpack-c's package differs by release: the C library was split off later.
msgpack_package() {
    if apt-cache show libmsgpack-c-dev >/dev/null 2>&1; then
        echo libmsgpack-c-dev
    else
        echo libmsgpack-dev
    fi
}

missing_packages() {
    has mix || echo elixir
    has node || echo nodejs
    has npm || echo npm
    has valgrind || echo valgrind
    has pkg-config || echo pkg-config
    [[ -e /usr/include/zmq.h ]] || echo libzmq3-dev
    [[ -e /usr/include/msgpack.h ]] || msgpack_package
}

install_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    [[ ${#packages[@]} == 0 ]] && return
    if ! has apt-get; then
        say "cannot install ${packages[*]}: there is no apt-get here; install what they are called on this system"
        return
    fi
    say "installing ${packages[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${packages[@]}" >/dev/null 2>&1 ||
        {
            as_root apt-get update -qq >/dev/null 2>&1
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
                --no-install-recommends "${packages[@]}" >/dev/null 2>&1
        }
    mapfile -t packages < <(missing_packages)
    [[ ${#packages[@]} == 0 ]] || say "could not install ${packages[*]}; try: apt-get install ${packages[*]}"
}

install_node_packages() {
    local stamp=hosts/node/node_modules/.vllmport-setup
    has npm || return
    [[ $stamp -nt hosts/node/package.json ]] && return
    say "installing the packages of hosts/node"
    if (cd hosts/node && npm install --silent >/dev/null 2>&1); then
        touch "$stamp"
    else
        say "could not install the packages of hosts/node; try: cd hosts/node && npm install"
    fi
}

install_packages
install_node_packages
