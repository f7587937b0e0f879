# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# Sourced by the tools that fetch: packages of Debian without root, by apt on a state of its own.
#
#   open_apt NAME [OPTION...]   make that state under build/, read the lists, and go there;
#                               the options are for apt
#   private_apt, private_cache  apt-get and apt-cache on it
#   unpack_here PACKAGE...      download packages and unpack them
#   close_apt                   leave nothing of it, and go back

open_apt() {
    apt=$PWD/build/$1
    shift
    apt_options="$*"
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/files"
    : > "$apt/status"
    # One mirror of several may be out of step; the downloads tell whether enough is there.
    private_apt update || true
    cd "$apt/files"
}

private_apt() {
    # shellcheck disable=SC2086  # options are words without blanks
    apt-get -qq $apt_options -o Dir::State="$apt" -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt/cache" -o APT::Sandbox::User= "$@"
}

private_cache() {
    # shellcheck disable=SC2086
    apt-cache $apt_options -o Dir::State="$apt" -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt/cache" "$@"
}

unpack_here() {
    private_apt download "$@"
    for package in ./*.deb; do
        dpkg-deb -x "$package" .
    done
}

close_apt() {
    cd "$apt/../.."
    rm -r "$apt"
}
